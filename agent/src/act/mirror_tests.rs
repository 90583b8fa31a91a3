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

/// As it is written to ZooKeeper by a transaction of its own.
fn written(mzxid: i64, outcome: Outcome) -> Znode {
    let Outcome::Write { data: Some(data), .. } = outcome else { panic!("{outcome:?} writes nothing") };
    Znode { data, ..znode(mzxid, "") }
}

const STANDS: Known<'_> = Known { identifier: OURS, old_stands: true, ours_stands: true };

fn decide(pair: Option<(i64, i64)>, old: Option<&Znode>, ours: Option<&Znode>) -> Outcome {
    becomes("a", STANDS, pair.map(|(old, ours)| (Zxid(old), Zxid(ours))), old, ours)
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
    let copy = decide(None, Some(&theirs), None);
    assert_eq!(place(&copy), Some(&ours()));
    let copy = written(9, copy);
    assert_eq!(decide(None, Some(&theirs), Some(&copy)), Outcome::Same);

    let own = record(5, "operator", "why", "7");
    let copy = decide(None, None, Some(&own));
    assert_eq!(place(&copy), Some(&old()));
    let copy = written(9, copy);
    assert_eq!(decide(None, Some(&copy), Some(&own)), Outcome::Same);
}

#[test]
fn a_copy_is_as_old_as_its_original_and_for_0_1_never_confirmed() {
    let theirs = record(5, "superseded", "why", "7");
    let copy = fence_record::parse(&written(9, decide(None, Some(&theirs), None)).data).unwrap();
    assert_eq!(copy.written.map(|(zxid, _)| zxid), Some(Zxid(5)));
    assert_eq!(copy.written.map(|(_, at)| at.0), Some(50));
    assert!(copy.confirmed.is_some());

    let own = record(5, "superseded", "why", "7");
    let copy = fence_record::parse(&written(9, decide(None, None, Some(&own))).data).unwrap();
    assert_eq!(copy.confirmed, None, "0.1's gate would take it for proof of what came after it");
}

#[test]
fn a_copy_of_a_copy_is_as_old_as_the_first() {
    let copy = written(9, decide(None, Some(&record(5, "operator", "why", "7")), None));
    // The folder in 0.1's tree was removed.
    let known = Known { old_stands: false, ..STANDS };
    let again = becomes("a", known, None, None, Some(&copy));
    assert_eq!(place(&again), Some(&old()));
    assert_eq!(fence_record::parse(&written(12, again).data).unwrap().written.map(|(zxid, _)| zxid), Some(Zxid(5)));
}

#[test]
fn what_was_the_same_and_is_gone_on_one_side_goes_on_the_other() {
    let record = record(5, "operator", "why", "null");
    assert_eq!(decide(Some((5, 7)), Some(&record), None), removes(old()));
    assert_eq!(decide(Some((7, 5)), None, Some(&record)), removes(ours()));
    // A copy goes with its original also where nobody came to note that they were the same.
    let copy = written(9, decide(None, Some(&record), None));
    assert_eq!(decide(None, None, Some(&copy)), removes(ours()));
    let copy = written(9, decide(None, None, Some(&record)));
    assert_eq!(decide(None, Some(&copy), None), removes(old()));
}

#[test]
fn between_a_removal_and_a_change_the_fence_stays() {
    let changed = record(9, "operator", "why", "null");
    assert_eq!(place(&decide(Some((5, 7)), Some(&changed), None)), Some(&ours()));
    assert_eq!(place(&decide(Some((7, 5)), None, Some(&changed))), Some(&old()));
}

#[test]
fn a_folder_that_was_removed_removes_nothing() {
    let record = record(5, "operator", "why", "null");
    let copy = written(9, decide(None, Some(&record), None));
    for kept in [&record, &copy] {
        let gone = Known { ours_stands: false, ..STANDS };
        assert_eq!(place(&becomes("a", gone, Some((Zxid(5), Zxid(7))), Some(kept), None)), Some(&ours()));
        let gone = Known { old_stands: false, ..STANDS };
        assert_eq!(place(&becomes("a", gone, Some((Zxid(7), Zxid(5))), None, Some(kept))), Some(&old()));
    }
}

#[test]
fn the_last_change_wins_but_a_persons_fence_over_any_other() {
    let person = |mzxid| record(mzxid, "operator", "a person", "null");
    let rule = |mzxid| record(mzxid, "superseded", "a rule", "3");
    for (pair, old_side, our_side, expected, why) in [
        (Some((5, 7)), rule(9), person(7), ours(), "only 0.1's changed"),
        (Some((5, 7)), person(5), rule(8), old(), "only ours changed"),
        (Some((5, 7)), person(8), rule(9), ours(), "both changed"),
        (Some((5, 7)), rule(9), person(8), old(), "both changed"),
        (None, person(3), rule(9), ours(), "nothing is known of before"),
        (None, record(9, "operator", "later", "null"), person(3), ours(), "two persons"),
        (None, person(3), record(9, "operator", "later", "null"), old(), "two persons"),
    ] {
        assert_eq!(place(&decide(pair, Some(&old_side), Some(&our_side))), Some(&expected), "{why}");
    }
}

#[test]
fn a_copy_that_came_late_does_not_win_over_what_changed_before_it() {
    let copy = written(12, decide(None, Some(&record(5, "operator", "first", "null")), None));
    let changed = record(9, "operator", "second", "null");
    assert_eq!(place(&decide(None, Some(&changed), Some(&copy))), Some(&ours()));
}

#[test]
fn a_confirmation_that_only_a_copy_lacks_is_no_difference() {
    let own = record(5, "operator", "why", "null");
    let copy = written(9, decide(None, None, Some(&own)));
    assert_eq!(decide(Some((9, 5)), Some(&copy), Some(&record(11, "operator", "why", "7"))), Outcome::Same);
    // One that 0.1 gives is.
    let confirmed = record(12, "operator", "why", "8");
    assert_eq!(place(&decide(Some((9, 5)), Some(&confirmed), Some(&own))), Some(&ours()));
}

#[test]
fn what_cannot_be_understood_or_is_anothers_is_left() {
    let good = record(5, "operator", "why", "null");
    let about_b = String::from_utf8(good.data.clone()).unwrap().replace(r#""a""#, r#""b""#);
    let foreign = Known { identifier: "1", ..STANDS };
    let theirs = written(9, becomes("a", foreign, None, None, Some(&good)));
    for (bad, word) in [
        (znode(5, r#"{"member":"a","rule":"#), "not a fence record"),
        (znode(5, "{}"), "not a fence record"),
        (znode(5, &about_b), "about b"),
        (theirs, "system identifier 1"),
    ] {
        for other in [None, Some(&good)] {
            let Outcome::Left(why) = decide(Some((1, 2)), Some(&bad), other) else { panic!("{word}: it is not left") };
            assert!(why.contains(word), "{why}");
        }
    }
    // One of ours that cannot be understood is not written over either.
    let torn = znode(5, "{");
    assert!(matches!(decide(None, Some(&good), Some(&torn)), Outcome::Left(_)));
}
