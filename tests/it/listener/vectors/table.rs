//! The rows of the table that need no clock, in its order, then F1, F2 and F4.

use super::*;

/// Rows of the table, and F1, F2 and F4 behind them.
pub const ROWS: usize = 26 + 3;

struct Rows(Vec<Vector>);

impl Rows {
    fn row(&mut self, row: &'static str, rule: Rule, spellings: impl IntoIterator<Item = (&'static str, String)>) {
        let vectors = spellings.into_iter();
        self.0.extend(vectors.map(|(what, text)| Vector { row, what, bytes: text.into_bytes(), rule }));
    }
}

/// All of them; a vector's number is its place here.
pub fn vectors() -> Vec<Vector> {
    let mut rows = Rows(Vec::new());
    lengths(&mut rows);
    codings(&mut rows);
    heads(&mut rows);
    hosts_and_versions(&mut rows);
    chunks(&mut rows);
    meanings(&mut rows);
    paths(&mut rows);
    tunnels(&mut rows);
    unread(&mut rows);
    hidden(&mut rows);
    methods(&mut rows);
    rows.0
}

/// The body as one chunk.
fn one_chunk() -> String {
    format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len())
}

/// A chat completion in chunks, written so.
fn chunked(body: &str) -> String {
    post("transfer-encoding: chunked\r\n", body)
}

/// A chat completion with one more line in its head.
fn with(line: &str) -> String {
    post(&format!("{}{line}", length(BODY)), BODY)
}

fn lengths(rows: &mut Rows) {
    let n = BODY.len();
    let both = |first: &str, second: &str, body: &str| post(&format!("{first}{second}"), body);
    let coding = "transfer-encoding: chunked\r\n";
    let hidden = format!("0\r\n\r\n{}", post(&length(NEXT), NEXT));
    rows.row(
        "CL + TE",
        Rule::ServeOrRefuse,
        [
            ("CL first, the chunks are the body", both("content-length: 5\r\n", coding, &one_chunk())),
            ("TE first, the chunks are the body", both(coding, "content-length: 5\r\n", &one_chunk())),
        ],
    );
    rows.row(
        "CL + TE",
        Rule::Refuse(400),
        [
            ("CL first, its length hides a request", both(&length(&hidden), coding, &hidden)),
            ("TE first, its length hides a request", both(coding, &length(&hidden), &hidden)),
        ],
    );
    let twice =
        |first: usize, second: usize| post(&format!("content-length: {first}\r\ncontent-length: {second}\r\n"), BODY);
    rows.row("duplicate CL", Rule::Serve, [("equal", twice(n, n))]);
    rows.row(
        "duplicate CL",
        Rule::Refuse(400),
        [("different", twice(n, 3)), ("different, shorter first", twice(3, n))],
    );
    let sized = |length: &str| post(&format!("content-length:{length}\r\n"), BODY);
    rows.row(
        "bad CL",
        Rule::Refuse(400),
        [
            ("n, n", sized(&format!(" {n}, {n}"))),
            ("+n", sized(&format!(" +{n}"))),
            ("-1", sized(" -1")),
            ("empty", sized("")),
            ("0xn", sized(&format!(" 0x{n:x}"))),
            ("n a", sized(&format!(" {n} a"))),
            ("23 digits", sized(" 99999999999999999999999")),
        ],
    );
}

fn codings(rows: &mut Rows) {
    let coded = |value: &str| post(&format!("transfer-encoding: {value}\r\n"), &one_chunk());
    rows.row(
        "bad TE",
        Rule::Refuse(400),
        [
            ("xchunked", coded("xchunked")),
            ("chunked, identity", coded("chunked, identity")),
            ("two lines", coded("chunked\r\ntransfer-encoding: identity")),
            ("\\x0bchunked", coded("\x0bchunked")),
        ],
    );
    rows.row(
        "TE of several",
        Rule::Refuse(400),
        [
            ("identity, chunked", coded("identity, chunked")),
            ("gzip, chunked", coded("gzip, chunked")),
            ("chunked, chunked", coded("chunked, chunked")),
        ],
    );
}

fn heads(rows: &mut Rows) {
    rows.row(
        "bad field lines",
        Rule::Refuse(400),
        [
            ("Header : v", with("x-a : b\r\n")),
            ("obs-fold", with("x-a: b\r\n c\r\n")),
            ("a leading space", with(" x-a: b\r\n")),
            ("an empty name", with(": b\r\n")),
            ("NUL", with("x-a: b\0c\r\n")),
            ("a bare CR", with("x-a: b\rc\r\n")),
        ],
    );
    let lenient =
        with("").split_once("\r\n\r\n").map(|(head, body)| format!("{}\n\n{body}", head.replace("\r\n", "\n")));
    rows.row("bare LF", Rule::Serve, [("all line ends", lenient.unwrap())]);
    let behind = |lines: &str| format!("{lines}{}", with(""));
    rows.row("leading CRLF", Rule::Serve, [("none", behind("")), ("one", behind("\r\n"))]);
    rows.row(
        "leading CRLF",
        Rule::Refuse(400),
        [
            ("two", behind("\r\n\r\n")),
            ("two bare LF", behind("\n\n")),
            ("more than a head may be long", behind(&"\r\n".repeat(10_000))),
            ("more than is buffered", behind(&"\r\n".repeat(500_000))),
        ],
    );
    let many: String = (0..101).map(|at| format!("x-{at}: b\r\n")).collect();
    rows.row(
        "large heads",
        Rule::Refuse(431),
        [
            ("more than 100 fields", with(&many)),
            ("65 fields", with(&(0..61).map(|at| format!("x-{at}: b\r\n")).collect::<String>())),
            ("a field of 500 KB", with(&format!("x-a: {}\r\n", "b".repeat(500_000)))),
            ("a head of 17 KiB", with(&format!("x-a: {}\r\n", "b".repeat(17 << 10)))),
        ],
    );
}

fn hosts_and_versions(rows: &mut Rows) {
    let hosted = |line: &str, hosts: &str| raw(line, &format!("{hosts}{}", length(BODY)), BODY);
    let usual = "POST /v1/chat/completions HTTP/1.1";
    rows.row(
        "hosts",
        Rule::Refuse(400),
        [
            ("none", hosted(usual, "")),
            ("two", hosted(usual, "host: a\r\nhost: b\r\n")),
            ("two that are equal", hosted(usual, "host: a\r\nhost: a\r\n")),
            ("a/#@evil", hosted(usual, "host: a/#@evil\r\n")),
            ("not the absolute form's", hosted("POST http://a/v1/chat/completions HTTP/1.1", "host: b\r\n")),
        ],
    );
    let line = |line: &str| hosted(line, "host: a\r\n");
    rows.row(
        "versions",
        Rule::Refuse(400),
        [
            (
                "TE in HTTP/1.0",
                raw("POST /v1/chat/completions HTTP/1.0", "host: a\r\ntransfer-encoding: chunked\r\n", &one_chunk()),
            ),
            ("HTTP/1.2", line("POST /v1/chat/completions HTTP/1.2")),
            ("HTTP/2.0", line("POST /v1/chat/completions HTTP/2.0")),
            ("tabs", line("POST\t/v1/chat/completions\tHTTP/1.1")),
        ],
    );
    let bare = raw("POST /v1/chat/completions HTTP/1.0", "host: a\r\n", BODY);
    rows.row("HTTP/1.0 without CL", Rule::Refuse(400), [("a body", bare)]);
}

fn chunks(rows: &mut Rows) {
    let n = BODY.len();
    let sized = |size: &str| chunked(&format!("{size}{BODY}\r\n0\r\n\r\n"));
    rows.row("chunk lines", Rule::Serve, [("an extension", sized(&format!("{n:x};a=\"b\"\r\n")))]);
    rows.row(
        "chunk lines",
        Rule::Refuse(400),
        [
            ("an extension with a bare LF", sized(&format!("{n:x};a\nb\r\n"))),
            ("an extension with a bare CR", sized(&format!("{n:x};a\rb\r\n"))),
            ("a size ended by LF", sized(&format!("{n:x}\n"))),
            ("0x", sized(&format!("0x{n:x}\r\n"))),
            ("+", sized(&format!("+{n:x}\r\n"))),
            ("a leading space", sized(&format!(" {n:x}\r\n"))),
            ("17 hexadecimal digits", sized(&format!("1{n:016x}\r\n"))),
            ("no CRLF after the bytes", chunked(&format!("{n:x}\r\n{BODY}0\r\n\r\n"))),
        ],
    );
    rows.row("a size and a space", Rule::Serve, [("\"n \"", sized(&format!("{n:x} \r\n")))]);
    let large = "a".repeat(17 << 10);
    let many = format!("{:x};{}\r\n{}\r\n", 1, "e".repeat(1_000), &BODY[..1]);
    let extended: String = BODY.chars().map(|one| many.replace("\r\n{\r\n", &format!("\r\n{one}\r\n"))).collect();
    rows.row(
        "large chunk lines",
        Rule::Refuse(400),
        [
            ("an extension of 17 KiB", sized(&format!("{n:x};{large}\r\n"))),
            ("extensions of 66 KiB in all", chunked(&format!("{extended}0\r\n\r\n"))),
            ("trailers of 17 KiB", chunked(&format!("{n:x}\r\n{BODY}\r\n0\r\nx-a: {large}\r\n\r\n"))),
        ],
    );
    let trailed = |trailer: &str| chunked(&format!("{n:x}\r\n{BODY}\r\n0\r\n{trailer}\r\n\r\n"));
    rows.row(
        "trailers",
        Rule::Serve,
        [("content-length", trailed("content-length: 3")), ("authorization", trailed("authorization: Bearer evil"))],
    );
}

fn meanings(rows: &mut Rows) {
    rows.row("Expect", Rule::Refuse(417), [("y 100-continue", with("expect: y 100-continue\r\n"))]);
    rows.row("Expect", Rule::Continue, [("100-continue", with("expect: 100-continue\r\n"))]);
    let stranger = with("expect: 100-continue\r\n").replace(SHOP, "wb-nobody-knows-this-key");
    // No 100 before it is known who asks; hyper reads the small body that came all the same, and cuts it right.
    rows.row("Expect", Rule::Decline(401), [("100-continue of a stranger", stranger)]);
    let get = |headers: &str, body: &str| raw("GET /v1/models HTTP/1.1", &format!("host: a\r\n{headers}"), body);
    rows.row(
        "GET with a body",
        Rule::Refuse(400),
        [("CL", get(&length(BODY), BODY)), ("TE", get("transfer-encoding: chunked\r\n", &one_chunk()))],
    );
}

fn paths(rows: &mut Rows) {
    let at = |path: &str| raw(&format!("POST {path} HTTP/1.1"), &format!("host: a\r\n{}", length(BODY)), BODY);
    rows.row(
        "paths",
        Rule::Decline(404),
        [
            ("..%2f", at("/v1/x/..%2fchat/completions")),
            ("//x/../y", at("//v1/../v1/chat/completions")),
            ("..", at("/v1/x/../chat/completions")),
        ],
    );
    rows.row("paths", Rule::Decline(404), [("\\", at("/v1\\chat\\completions"))]);
    // hyper cuts it off; nothing of it travels.
    rows.row("paths", Rule::Serve, [("a fragment", at("/v1/chat/completions#/../x"))]);
}

fn tunnels(rows: &mut Rows) {
    let connect =
        |body: &str| raw("CONNECT evil.test:80 HTTP/1.1", &format!("host: evil.test:80\r\n{}", length(body)), body);
    rows.row("CONNECT", Rule::Refuse(405), [("a tunnel", connect("")), ("with a request in it", connect(BODY))]);
    rows.row(
        "Upgrade",
        Rule::Refuse(400),
        [
            ("websocket, a second request behind it", with("connection: upgrade\r\nupgrade: websocket\r\n")),
            (
                "h2c, a second request behind it",
                with("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"),
            ),
        ],
    );
    let stranger = format!("{}{}", post("content-length: 5000000\r\n", ""), "x".repeat(5_000_000));
    let stranger = stranger.replace(SHOP, "wb-nobody-knows-this-key");
    rows.row("early answer", Rule::Refuse(401), [("5 MB unread", stranger)]);
}

/// What is answered before its body is read must leave nothing of that body behind for a request: it is cut off by its
/// own framing if it is small and came along, else the connection ends.
fn unread(rows: &mut Rows) {
    let hidden = post(&length(BODY), BODY);
    let many = hidden.repeat(3_000);
    let one = |of: &str| format!("{:x}\r\n{of}\r\n0\r\n\r\n", of.len());
    let coded = "transfer-encoding: chunked\r\n";
    let written = |headers: &str, body: &str| {
        let at = |line: &str| raw(line, &format!("host: a\r\n{headers}"), body);
        let stranger = post(headers, "").replace(SHOP, "wb-nobody-knows-this-key") + body;
        [(404, at("POST /v1/nothing HTTP/1.1")), (405, at("PUT /v1/chat/completions HTTP/1.1")), (401, stranger)]
    };
    let forms = [
        ("CL hides a request", length(&hidden), hidden.clone(), true),
        ("a chunk hides a request", coded.to_owned(), one(&hidden), false),
        ("CL hides 3,000 requests", length(&many), many.clone(), false),
        ("a chunk hides 3,000 requests", coded.to_owned(), one(&many), false),
        ("a chunk of no size, then a request", coded.to_owned(), format!("zz\r\n{hidden}"), false),
        ("a chunk that is too short for its request", coded.to_owned(), format!("5\r\n{hidden}"), false),
    ];
    for (what, headers, body, came_along) in forms {
        for (status, request) in written(&headers, &body) {
            let rule = if came_along { Rule::Decline(status) } else { Rule::Refuse(status) };
            rows.row("early answer", rule, [(what, request)]);
        }
    }
}

fn hidden(rows: &mut Rows) {
    let inner = post(&length(NEXT), NEXT);
    let good = post(&length(BODY), BODY);
    let bad = post(&format!("host: b\r\n{}", length(BODY)), BODY);
    let pipeline = good.repeat(50) + &bad + &good.repeat(49);
    rows.row("F1", Rule::ServeThenRefuse(50, 400), [("100 in a pipeline, the 51st is bad", pipeline)]);
    let get = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SHOP}\r\n");
    let nothing = post("expect: 100-continue\r\ncontent-length: 0\r\n", "x=y\r\n\r\n");
    rows.row("F2", Rule::RefuseBoth(400), [("Expect, a length of nothing and a body", nothing)]);
    rows.row(
        "F2",
        Rule::Refuse(400),
        [
            ("GET and CL", format!("{get}{}\r\n{inner}", length(&inner))),
            ("GET, CL and Expect", format!("{get}expect: 100-continue\r\n{}\r\n{inner}", length(&inner))),
        ],
    );
}

fn methods(rows: &mut Rows) {
    let asked =
        |method: &str| raw(&format!("{method} /v1/chat/completions HTTP/1.1"), "host: a\r\ncontent-length: 0\r\n", "");
    for method in ["TRACE", "TRACK", "post", "Post", "DEBUG"] {
        rows.row("F4", Rule::Decline(405), [(method, asked(method))]);
    }
    let mut dice = sockets::Dice::new(4);
    let word = |dice: &mut sockets::Dice| -> String {
        (0..3 + dice.roll(12)).map(|_| char::from(b'A' + dice.roll(26) as u8)).collect()
    };
    let random: String = (0..1_000).map(|_| asked(&format!("{}X", word(&mut dice)))).collect();
    rows.row("F4", Rule::DeclineAll(405, 1_000), [("1,000 random ones", random)]);
}
