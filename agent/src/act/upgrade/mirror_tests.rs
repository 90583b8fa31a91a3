use super::*;

const OURS: &str = "42";

fn znode(mzxid: i64, json: &str) -> Znode {
    let data = json.as_bytes().to_vec();
    Znode { data, czxid: 1, mzxid, version: 0, owner: 0, ctime_ms: 1, mtime_ms: mzxid * 10 }
}

fn record(mzxid: i64, rule: &str, reason: &str, confirmed: &str) -> Znode {
    let text = format!(
        r#"{{"member":"a","rule":"{rule}","reason":"{reason}","by":"x","ordered_ms":1,"confirmed_ms":{confirmed}}}"#
    );
    znode(mzxid, &text)
}

/// The znode after the write, in a transaction of its own.
fn written(mzxid: i64, outcome: Outcome) -> Znode {
    let Outcome::Write { data: Some(data), .. } = outcome else { panic!("{outcome:?} writes nothing") };
    Znode { data, ..znode(mzxid, "") }
}

const SAME_FOLDERS: Known<'_> = Known { identifier: OURS, old_folder_is_same: true, our_folder_is_same: true };

fn decided(pair: Option<(i64, i64)>, old: Option<&Znode>, ours: Option<&Znode>) -> Outcome {
    decide("a", SAME_FOLDERS, pair.map(|(old, ours)| (Zxid(old), Zxid(ours))), old, ours)
}

fn removes(place: Place) -> Outcome {
    Outcome::Write { place, data: None }
}

fn old() -> Place {
    Place::OldFence("a".to_owned())
}

fn ours() -> Place {
    Place::Fence("a".to_owned())
}

fn place(outcome: &Outcome) -> Option<&Place> {
    match outcome {
        Outcome::Write { place, data: Some(_) } => Some(place),
        _ => None,
    }
}

#[test]
fn a_record_of_one_tree_is_copied_to_the_other_and_not_back() {
    let theirs = record(5, "operator", "why", "7");
    let copy = decided(None, Some(&theirs), None);
    assert_eq!(place(&copy), Some(&ours()));
    let copy = written(9, copy);
    assert_eq!(decided(None, Some(&theirs), Some(&copy)), Outcome::Same);

    let own = record(5, "operator", "why", "7");
    let copy = decided(None, None, Some(&own));
    assert_eq!(place(&copy), Some(&old()));
    let copy = written(9, copy);
    assert_eq!(decided(None, Some(&copy), Some(&own)), Outcome::Same);
}

#[test]
fn a_copy_is_as_old_as_its_original_and_for_0_1_never_confirmed() {
    let theirs = record(5, "superseded", "why", "7");
    let copy = fence_record::parse(&written(9, decided(None, Some(&theirs), None)).data).unwrap();
    assert_eq!(copy.written.map(|(zxid, _)| zxid), Some(Zxid(5)));
    assert_eq!(copy.written.map(|(_, at)| at.0), Some(50));
    assert!(copy.confirmed.is_some());

    let own = record(5, "superseded", "why", "7");
    let copy = fence_record::parse(&written(9, decided(None, None, Some(&own))).data).unwrap();
    assert_eq!(copy.confirmed, None, "for the gate of 0.1 it would prove a later stop");
}

#[test]
fn a_copy_of_a_copy_is_as_old_as_the_first() {
    let copy = written(9, decided(None, Some(&record(5, "operator", "why", "7")), None));
    // The folder in the tree of 0.1 was removed.
    let known = Known { old_folder_is_same: false, ..SAME_FOLDERS };
    let again = decide("a", known, None, None, Some(&copy));
    assert_eq!(place(&again), Some(&old()));
    assert_eq!(fence_record::parse(&written(12, again).data).unwrap().written.map(|(zxid, _)| zxid), Some(Zxid(5)));
}

#[test]
fn a_record_that_was_the_same_and_is_removed_from_one_tree_is_removed_from_the_other() {
    let record = record(5, "operator", "why", "null");
    assert_eq!(decided(Some((5, 7)), Some(&record), None), removes(old()));
    assert_eq!(decided(Some((7, 5)), None, Some(&record)), removes(ours()));
    // A copy is removed with its original also without a note.
    let copy = written(9, decided(None, Some(&record), None));
    assert_eq!(decided(None, None, Some(&copy)), removes(ours()));
    let copy = written(9, decided(None, None, Some(&record)));
    assert_eq!(decided(None, Some(&copy), None), removes(old()));
}

#[test]
fn between_a_removal_and_a_change_the_fence_stays() {
    let changed = record(9, "operator", "why", "null");
    assert_eq!(place(&decided(Some((5, 7)), Some(&changed), None)), Some(&ours()));
    assert_eq!(place(&decided(Some((7, 5)), None, Some(&changed))), Some(&old()));
}

#[test]
fn a_folder_that_was_removed_removes_nothing() {
    let record = record(5, "operator", "why", "null");
    let copy = written(9, decided(None, Some(&record), None));
    for kept in [&record, &copy] {
        let gone = Known { our_folder_is_same: false, ..SAME_FOLDERS };
        assert_eq!(place(&decide("a", gone, Some((Zxid(5), Zxid(7))), Some(kept), None)), Some(&ours()));
        let gone = Known { old_folder_is_same: false, ..SAME_FOLDERS };
        assert_eq!(place(&decide("a", gone, Some((Zxid(7), Zxid(5))), None, Some(kept))), Some(&old()));
    }
}

#[test]
fn the_last_change_wins_but_the_operators_fence_over_any_other() {
    let operator = |mzxid| record(mzxid, "operator", "an operator", "null");
    let rule = |mzxid| record(mzxid, "superseded", "a rule", "3");
    for (pair, old_side, our_side, expected, why) in [
        (Some((5, 7)), rule(9), operator(7), ours(), "only 0.1's changed"),
        (Some((5, 7)), operator(5), rule(8), old(), "only ours changed"),
        (Some((5, 7)), operator(8), rule(9), ours(), "both changed"),
        (Some((5, 7)), rule(9), operator(8), old(), "both changed"),
        (None, operator(3), rule(9), ours(), "there is no note"),
        (None, record(9, "operator", "later", "null"), operator(3), ours(), "two operators"),
        (None, operator(3), record(9, "operator", "later", "null"), old(), "two operators"),
    ] {
        assert_eq!(place(&decided(pair, Some(&old_side), Some(&our_side))), Some(&expected), "{why}");
    }
}

#[test]
fn a_copy_that_came_late_does_not_win_over_what_changed_before_it() {
    let copy = written(12, decided(None, Some(&record(5, "operator", "first", "null")), None));
    let changed = record(9, "operator", "second", "null");
    assert_eq!(place(&decided(None, Some(&changed), Some(&copy))), Some(&ours()));
}

#[test]
fn a_confirmation_that_only_a_copy_lacks_is_no_difference() {
    let own = record(5, "operator", "why", "null");
    let copy = written(9, decided(None, None, Some(&own)));
    assert_eq!(decided(Some((9, 5)), Some(&copy), Some(&record(11, "operator", "why", "7"))), Outcome::Same);
    // A confirmation by 0.1 is a difference.
    let confirmed = record(12, "operator", "why", "8");
    assert_eq!(place(&decided(Some((9, 5)), Some(&confirmed), Some(&own))), Some(&ours()));
}

#[test]
fn an_unreadable_record_or_one_of_another_cluster_is_skipped() {
    let good = record(5, "operator", "why", "null");
    let about_b = String::from_utf8(good.data.clone()).unwrap().replace(r#""a""#, r#""b""#);
    let foreign = Known { identifier: "1", ..SAME_FOLDERS };
    let theirs = written(9, decide("a", foreign, None, None, Some(&good)));
    for (bad, word) in [
        (znode(5, r#"{"member":"a","rule":"#), "not a fence record"),
        (znode(5, "{}"), "not a fence record"),
        (znode(5, &about_b), "about b"),
        (theirs, "system identifier 1"),
    ] {
        for other in [None, Some(&good)] {
            let Outcome::Skipped(why) = decided(Some((1, 2)), Some(&bad), other) else {
                panic!("{word}: it is not skipped")
            };
            assert!(why.contains(word), "{why}");
        }
    }
    // The agent does not overwrite an unreadable record in our own tree either.
    let torn = znode(5, "{");
    assert!(matches!(decided(None, Some(&good), Some(&torn)), Outcome::Skipped(_)));
}
