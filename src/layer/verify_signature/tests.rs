//! The nonces and their files; the checks themselves are tested through the whole stack (`tests/it/signed.rs`).

use std::fs;

use super::nonces::{LIFE, Nonce, Nonces, Taken};
use crate::domain::clock;

fn nonce(number: u32) -> Nonce {
    Nonce::of("shop", "k1", &format!("{number:022}"))
}

fn take(nonces: &Nonces, number: u32) -> Taken {
    nonces.take(nonce(number), clock::unix_ms())
}

#[tokio::test(start_paused = true)]
async fn c2_a_full_store_refuses_and_forgets_nothing_before_its_time() {
    let nonces = Nonces::with_room(2);
    assert_eq!([1, 2, 3].map(|number| take(&nonces, number)), [Taken::Fresh, Taken::Fresh, Taken::NoRoom]);
    assert_eq!(take(&nonces, 1), Taken::Before, "also while there is no room");
    tokio::time::advance(LIFE - std::time::Duration::from_millis(1)).await;
    assert_eq!([1, 3].map(|number| take(&nonces, number)), [Taken::Before, Taken::NoRoom]);
    tokio::time::advance(std::time::Duration::from_millis(1)).await;
    assert_eq!([3, 1].map(|number| take(&nonces, number)), [Taken::Fresh, Taken::Fresh]);
}

#[test]
fn c6_no_part_of_a_nonce_can_be_moved_into_another() {
    let all = [("shop", "k1", "n"), ("sho", "pk1", "n"), ("shop", "k", "1n"), ("shop", "k1n", ""), ("shopk1n", "", "")];
    for (index, (caller, key, nonce)) in all.into_iter().enumerate() {
        for (other_caller, other_key, other) in all.into_iter().skip(index + 1) {
            assert_ne!(Nonce::of(caller, key, nonce), Nonce::of(other_caller, other_key, other));
        }
    }
}

#[test]
fn c2_what_was_used_before_a_restart_is_used_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Nonces::kept(folder.path());
    assert!(first.oldest_ms() > 0, "nothing is known of what came before");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nobody signs, so there is no file");
    assert_eq!([1, 2].map(|number| take(&first, number)), [Taken::Fresh, Taken::Fresh]);
    drop(first);
    let second = Nonces::kept(folder.path());
    assert_eq!(second.oldest_ms(), 0);
    assert_eq!([1, 2, 3].map(|number| take(&second, number)), [Taken::Before, Taken::Before, Taken::Fresh]);
    drop(second);
    let third = Nonces::kept(folder.path());
    assert_eq!([1, 2, 3].map(|number| take(&third, number)), [Taken::Before; 3]);
}

#[test]
fn c2_the_files_take_turns_and_hold_what_still_matters() {
    let folder = tempfile::tempdir().unwrap();
    let life_ms = u64::try_from(LIFE.as_millis()).unwrap();
    let now = clock::unix_ms();
    let nonces = Nonces::kept(folder.path());
    // Ten lives in the past: each turn empties the file of the life before the last.
    for turn in 0..10u64 {
        let at = now - life_ms * (9 - turn);
        assert_eq!(nonces.take(nonce(u32::try_from(turn).unwrap()), at), Taken::Fresh);
    }
    let records: u64 = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(records, 48, "two records of 24 bytes are left");
    let again = Nonces::kept(folder.path());
    assert_eq!([9, 1].map(|number| take(&again, number)), [Taken::Before, Taken::Fresh]);
}

#[test]
fn c2_a_torn_record_is_left_out_and_a_file_that_cannot_be_read_refuses_what_is_older() {
    let folder = tempfile::tempdir().unwrap();
    let nonces = Nonces::kept(folder.path());
    assert_eq!([1, 2].map(|number| take(&nonces, number)), [Taken::Fresh, Taken::Fresh]);
    let path = folder.path().join("nonces.0");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let again = Nonces::kept(folder.path());
    assert_eq!([1, 2].map(|number| take(&again, number)), [Taken::Before, Taken::Fresh]);

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(Nonces::kept(folder.path()).oldest_ms() > 0);
}

#[test]
fn c2_a_folder_that_cannot_be_written_is_no_reason_to_refuse_and_the_next_start_knows() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("file");
    fs::write(&place, "not a folder").unwrap();
    let nonces = Nonces::kept(&place.join("below"));
    assert_eq!([1, 1, 2].map(|number| take(&nonces, number)), [Taken::Fresh, Taken::Before, Taken::Fresh]);
}

#[test]
fn s11_the_files_are_nobody_elses_business() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(take(&Nonces::kept(folder.path()), 1), Taken::Fresh);
    let mode = fs::metadata(folder.path().join("nonces.0")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn c2_row_43_of_two_processes_that_hand_over_only_one_accepts_a_nonce() {
    let folder = tempfile::tempdir().unwrap();
    let old = Nonces::kept(folder.path());
    let since = old.oldest_ms();
    assert_eq!(take(&old, 1), Taken::Fresh);
    let new = Nonces::kept(folder.path());
    assert_eq!(take(&old, 2), Taken::Fresh, "after the new one read the files");
    assert_eq!(old.share(), Some(since));
    new.continue_from(Some(since));
    assert_eq!(new.oldest_ms(), since);
    assert_eq!([1, 2, 3].map(|number| take(&new, number)), [Taken::Before, Taken::Before, Taken::Fresh]);
    assert_eq!([3, 4].map(|number| take(&old, number)), [Taken::Before, Taken::Fresh]);
    new.share_no_more();
    assert_eq!([4, 5].map(|number| take(&new, number)), [Taken::Before, Taken::Fresh]);
    assert_eq!(take(&Nonces::kept(folder.path()), 5), Taken::Before, "nothing was lost on disk");
}

#[test]
fn c2_row_43_a_process_in_whose_life_nobody_signed_hands_over_when_it_began() {
    let folder = tempfile::tempdir().unwrap();
    let old = Nonces::kept(folder.path());
    let since = old.oldest_ms();
    let new = Nonces::kept(folder.path());
    new.continue_from(old.share());
    assert_eq!(new.oldest_ms(), since);
    assert_eq!(Nonces::in_memory().share(), None);
}
