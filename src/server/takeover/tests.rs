use std::net::TcpStream;

use super::*;

fn listeners() -> Listeners {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    Listeners { data: bind(), admin: bind() }
}

fn open(path: &Path) -> (Succession, Arc<AtomicBool>) {
    let busy = Arc::new(AtomicBool::new(false));
    (Succession::open(path, listeners(), Arc::clone(&busy)).unwrap(), busy)
}

#[tokio::test]
async fn row_43_the_sockets_themselves_go_over_and_whoever_waits_in_their_queue_goes_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("takeover");
    let ours = listeners();
    let (data, admin) = (ours.data.local_addr().unwrap(), ours.admin.local_addr().unwrap());
    let mut old = Succession::open(&path, ours, Arc::default()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = TcpStream::connect(data).unwrap();
    client.write_all(b"hi").unwrap();

    let asked = path.clone();
    let new = thread::spawn(move || {
        let (mut old, taken) = Predecessor::find(&asked).unwrap().unwrap();
        assert_eq!(old.release(), Some(7));
        let successor = Succession::open(&asked, listeners(), Arc::default()).unwrap();
        old.gone();
        (taken, successor)
    });
    let mut heir = old.heir().await;
    heir.release(Some(7)).unwrap();
    old.leave_to_heir();
    drop(heir);
    let (taken, successor) = new.join().unwrap();
    assert_eq!((taken.data.local_addr().unwrap(), taken.admin.local_addr().unwrap()), (data, admin));
    let (mut served, _) = taken.data.accept().unwrap();
    let mut said = [0; 2];
    served.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hi");
    assert!(path.exists(), "the file is the new process's");
    drop(successor);
    assert!(!path.exists() && fs::read_dir(folder.path()).unwrap().count() == 0);
}

#[test]
fn row_43_nobody_there_is_a_first_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("takeover");
    assert!(Predecessor::find(&path).unwrap().is_none());
    drop(UnixListener::bind(&path).unwrap());
    assert!(Predecessor::find(&path).unwrap().is_none(), "a file that a crash left behind");
    let (first, _) = open(&path);
    drop(first);
    assert!(Predecessor::find(&path).unwrap().is_none());
    fs::write(&path, "a file").unwrap();
    assert!(matches!(Predecessor::find(&path), Ok(None) | Err(TakeoverError::Socket { .. })));
}

#[tokio::test]
async fn row_43_one_that_asks_and_is_gone_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("takeover");
    let (mut old, busy) = open(&path);
    drop(Predecessor::ask(&path).unwrap().unwrap());
    busy.store(true, Ordering::Release);
    assert!(matches!(Predecessor::ask(&path), Err(TakeoverError::Busy(_))));
    busy.store(false, Ordering::Release);
    let mut stranger = UnixStream::connect(&path).unwrap();
    say(&mut stranger, "GET / HTTP/1.1").unwrap();
    assert_eq!(hear(&mut stranger).unwrap(), "unknown");
    let none = tokio::time::timeout(Duration::from_millis(50), old.heir()).await;
    assert!(none.is_err());
    let (mut new, _) = Predecessor::ask(&path).unwrap().unwrap();
    let told = thread::spawn(move || new.release());
    old.heir().await.release(None).unwrap();
    assert_eq!(told.join().unwrap(), None);
}
