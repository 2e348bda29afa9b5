//! Forms as clients write them, in every cut, and forms that two readers would understand differently.

use proptest::prelude::*;

use super::*;

const B: &str = "b08834a20f07e2588a4a8c7be506ab71";

fn boundary() -> Boundary {
    Boundary::of(format!("multipart/form-data; boundary={B}").as_bytes()).unwrap().unwrap()
}

fn part(head: &str, content: &str) -> String {
    format!("--{B}\r\n{head}\r\n\r\n{content}\r\n")
}

fn field(name: &str, content: &str) -> String {
    part(&format!("Content-Disposition: form-data; name=\"{name}\""), content)
}

fn file(content: &str) -> String {
    let head = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/x-wav";
    part(head, content)
}

fn form(parts: &[String]) -> String {
    format!("{}--{B}--\r\n", parts.concat())
}

fn scan(pieces: &[&[u8]]) -> Result<Fields, FormError> {
    let mut scanner = Scanner::new(&boundary());
    for piece in pieces {
        scanner.feed(piece)?;
    }
    scanner.finish()?;
    Ok(scanner.fields().clone())
}

fn value<'t>(text: &'t str, range: Option<&Range<usize>>) -> &'t str {
    &text[range.unwrap().clone()]
}

#[test]
fn the_fields_of_a_form_are_found_wherever_they_stand() {
    let text =
        form(&[file("RIFF\r\n--\r\n--b0"), field("model", "whisper-1"), field("stream", "true"), field("x", "\r\n")]);
    let fields = scan(&[text.as_bytes()]).unwrap();
    assert_eq!(value(&text, fields.model.as_ref()), "whisper-1");
    assert_eq!(value(&text, fields.stream.as_ref()), "true");
    assert_eq!(fields.response_format, None);
    let text = form(&[field("response_format", ""), field("model", "m"), file("")]);
    let fields = scan(&[text.as_bytes()]).unwrap();
    assert_eq!((value(&text, fields.model.as_ref()), value(&text, fields.response_format.as_ref())), ("m", ""));
}

#[test]
fn p7_boundaries_and_heads_and_parts_are_bounded() {
    let of = |text: &str| Boundary::of(text.as_bytes());
    assert_eq!(of("application/json"), None);
    for good in ["multipart/form-data; boundary=x", "Multipart/Form-Data;charset=utf-8; BOUNDARY=\"a b\""] {
        assert!(of(good).unwrap().is_ok(), "{good}");
    }
    let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
    for bad in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=\"a",
        "multipart/form-data; boundary=\"a \"",
        "multipart/form-data; boundary=a@b\"",
        &long,
    ] {
        assert!(of(bad).unwrap().is_err(), "{bad}");
    }
    assert_eq!(
        of("multipart/form-data; boundary=\"a b\"").unwrap().unwrap().content_type(),
        "multipart/form-data; boundary=\"a b\""
    );
    let head = format!("Content-Disposition: form-data; name=\"x\"\r\nX-Long: {}", "y".repeat(9_000));
    assert!(scan(&[form(&[part(&head, "")]).as_bytes()]).is_err());
    let many: Vec<String> = (0..257).map(|_| field("x", "")).collect();
    assert!(scan(&[form(&many).as_bytes()]).is_err());
    assert!(scan(&[form(&many[1..]).as_bytes()]).is_ok());
    assert_eq!(scan(&[form(&[field("model", &"m".repeat(513))]).as_bytes()]).unwrap_err().param, Some("model"));
}

#[test]
fn s10_a_form_that_two_readers_would_understand_differently_is_refused() {
    let model = field("model", "cheap");
    let bad_heads = [
        "Content-Disposition: form-data; name=\"x\"; name=\"model\"",
        "Content-Disposition: form-data; name=\"x\"; name*=utf-8''model",
        "Content-Disposition: form-data; name=\"x\"; filename=\"a\\\"; name=\"model\"",
        "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition: form-data; name=\"model\"",
        "Content-Disposition: form-data;\r\n name=\"model\"",
        "Content-Disposition: attachment; name=\"x\"",
        "Content-Disposition: form-data; name=\"x\r\"; filename=a",
        "Content-Disposition: form-data",
        "Content-Disposition : form-data; name=\"x\"",
        "Content-Type: text/plain",
        "Content-Disposition: form-data; name=\"x\"\r\nContent-Transfer-Encoding: base64",
        "Content-Disposition: form-data; name=\"model\"; filename=\"m\"",
        "",
    ];
    for head in bad_heads {
        assert!(scan(&[form(&[model.clone(), part(head, "dear")]).as_bytes()]).is_err(), "{head}");
    }
    let twice = form(&[model.clone(), file("RIFF"), field("model", "dear")]);
    assert_eq!(scan(&[twice.as_bytes()]).unwrap_err().param, Some("model"));
    let whole = form(&[model]);
    for text in [
        format!("preamble\r\n{whole}"),
        format!("{whole}--{B}\r\n"),
        whole.replace(&format!("{B}--"), &format!("{B}  --")),
        whole.replace("--\r\n", ""),
        whole.replace('\r', ""),
        String::new(),
    ] {
        assert!(scan(&[text.as_bytes()]).is_err(), "{text}");
    }
    assert!(scan(&[format!("\r\n{whole}\r\n").as_bytes()]).is_ok());
    assert!(scan(&[form(&[field("model", "")]).as_bytes()]).is_err());
}

/// Content made of what could be taken for a delimiter.
fn tricky() -> impl Strategy<Value = String> {
    let pieces = ["\r", "\n", "-", "--", "\r\n", "\r\n--", "\r\n--b0", &B[..31], "x", "model"];
    prop::collection::vec(prop::sample::select(pieces.map(str::to_owned).to_vec()), 0..12).prop_map(|all| all.concat())
}

proptest! {
    #[test]
    fn every_cut_of_a_form_is_read_the_same(
        content in tricky(),
        before in any::<bool>(),
        cuts in prop::collection::vec(0usize..600, 0..8),
    ) {
        let model = field("model", "whisper-1");
        let parts = if before { [model, file(&content)] } else { [file(&content), model] };
        let text = form(&parts);
        let whole = scan(&[text.as_bytes()]).unwrap();
        prop_assert_eq!(value(&text, whole.model.as_ref()), "whisper-1");
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&scan(&pieces).unwrap(), &whole);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        prop_assert_eq!(&scan(&bytes).unwrap(), &whole);
    }

    #[test]
    fn no_bytes_make_it_panic_and_a_refusal_does_not_depend_on_the_cut(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        size in 1usize..7,
    ) {
        let text = [field("model", "m").as_bytes(), &bytes].concat();
        let pieces: Vec<&[u8]> = text.chunks(size).collect();
        prop_assert_eq!(scan(&pieces), scan(&[&text]));
    }
}
