//! Names: the semantics of Pyro5 (after its `tests/test_naming.py`), then ownership, leases, revisions and limits.

use std::time::Duration;

use crate::params::MAX_NAMES_PER_IDENTITY;
use shared::{
    id::{Incarnation, Role},
    rpc::nameserver::{Condition, LeaseRequest, ListQuery, NameError, Register, Registered, Selector, TagQuery},
};

use super::{query::Query, *};

pub(crate) const NOW: Timestamp = Timestamp::from_origin(Duration::from_secs(100));
const URI: &str = "quic://host.com:4444";

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::restore(Snapshot::default(), NOW);
    registry.register_self("quic://127.0.0.1:9090".parse().unwrap(), NOW);
    registry
}

pub(crate) fn peer(id: &str) -> Role {
    Role::Peer(id.parse().unwrap())
}

pub(crate) fn request(name: &str) -> Register {
    Register {
        name: name.into(),
        uri: URI.into(),
        tags: None,
        lease: LeaseRequest::For(Duration::from_secs(10)),
        condition: Condition::Always,
        incarnation: Incarnation(1),
    }
}

fn permanent(name: &str) -> Register {
    Register { lease: LeaseRequest::Permanent, ..request(name) }
}

fn tagged(name: &str, tags: &[&str]) -> Register {
    Register { tags: Some(texts(tags)), ..permanent(name) }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn admin(registry: &mut Registry, request: Register) -> Registered {
    registry.register(NOW, &Role::Admin, request).unwrap()
}

fn names(registry: &Registry, query: impl TryInto<Query, Error = NameError>) -> Vec<String> {
    let page = registry.page(NOW, &query.try_into().unwrap());
    assert_eq!(page.next, None);
    page.records.into_iter().map(|record| record.name.into()).collect()
}

fn prefix(text: &str) -> ListQuery {
    ListQuery { prefix: Some(text.into()), ..ListQuery::default() }
}

fn regex(text: &str) -> ListQuery {
    ListQuery { regex: Some(text.into()), ..ListQuery::default() }
}

fn by_name(text: &str) -> Selector {
    Selector { name: Some(text.into()), ..Selector::default() }
}

fn by_prefix(text: &str) -> Selector {
    Selector { prefix: Some(text.into()), ..Selector::default() }
}

fn by_regex(text: &str) -> Selector {
    Selector { regex: Some(text.into()), ..Selector::default() }
}

fn remove(registry: &mut Registry, selector: Selector) -> u64 {
    registry.remove(NOW, &Role::Admin, selector).unwrap()
}

fn tags_of(registry: &Registry, name: &str) -> Vec<String> {
    registry.lookup(NOW, name).unwrap().tags.into_iter().map(Into::into).collect()
}

#[test]
fn register_overwrites_unless_the_condition_forbids_it() {
    let mut registry = registry();
    admin(&mut registry, permanent("test.object1"));
    let other = Register { uri: "quic://[::1]:5".into(), ..permanent("test.object1") };
    admin(&mut registry, other.clone());
    assert_eq!(registry.lookup(NOW, "test.object1").unwrap().uri.to_string(), "quic://[::1]:5");

    let safe = |name: &str| Register { condition: Condition::IfAbsent, ..permanent(name) };
    let taken = registry.register(NOW, &Role::Admin, safe("test.object1"));
    assert_eq!(taken, Err(NameError::NameExists("test.object1".parse().unwrap())));
    assert_eq!(registry.lookup(NOW, "test.object1").unwrap().uri.to_string(), "quic://[::1]:5");
    admin(&mut registry, safe("test.object2"));
    assert_eq!(registry.count(NOW), 3);
}

#[test]
fn invalid_name_or_endpoint_is_rejected() {
    let mut registry = registry();
    for bad in ["", "a\nb", &"x".repeat(256)] {
        let refused = registry.register(NOW, &Role::Admin, permanent(bad));
        assert!(matches!(refused, Err(NameError::InvalidName(_))), "{bad:?}: {refused:?}");
    }
    for bad in ["THISVALUEISNOTANURI", "", "PYRO:x@host:1", "quic://host"] {
        let refused = registry.register(NOW, &Role::Admin, Register { uri: bad.into(), ..permanent("test") });
        assert!(matches!(refused, Err(NameError::InvalidUri(_))), "{bad:?}: {refused:?}");
    }
    assert_eq!(registry.lookup(NOW, "unknown"), Err(NameError::UnknownName("unknown".into())));
    assert_eq!(registry.lookup(NOW, ""), Err(NameError::UnknownName(String::new())));
    assert_eq!(registry.count(NOW), 1);
}

#[test]
fn remove_returns_the_number_of_removed_names() {
    let mut registry = registry();
    for number in 0..20 {
        admin(&mut registry, permanent(&format!("test.{number}")));
    }
    assert_eq!(remove(&mut registry, by_name("wrong")), 0);
    assert_eq!(remove(&mut registry, by_name("not\na name")), 0);
    assert_eq!(remove(&mut registry, by_prefix("wrong")), 0);
    assert_eq!(remove(&mut registry, by_regex("wrong.*")), 0);
    for empty in [by_name(""), by_prefix(""), by_regex("")] {
        assert_eq!(remove(&mut registry, empty), 0);
    }
    assert_eq!(remove(&mut registry, by_name("test.0")), 1);
    assert_eq!(remove(&mut registry, by_prefix("test.1")), 11, "1 and 10 to 19");
    assert_eq!(remove(&mut registry, by_regex(r"test\..")), 8, "2 to 9");
    assert_eq!(names(&registry, ListQuery::default()), ["nameserver"]);
    let both = Selector { prefix: Some("a".into()), ..by_regex("a") };
    assert!(matches!(registry.remove(NOW, &Role::Admin, both), Err(NameError::InvalidQuery(_))));
    assert!(matches!(registry.remove(NOW, &Role::Admin, Selector::default()), Err(NameError::InvalidQuery(_))));
}

#[test]
fn own_entry_of_the_nameserver_cannot_be_changed() {
    let mut registry = registry();
    for caller in [Role::Admin, Role::Nameserver, peer("a")] {
        assert_eq!(registry.remove(NOW, &caller, by_name("nameserver")), Ok(0));
        assert_eq!(registry.remove(NOW, &caller, by_prefix("name")), Ok(0));
        assert_eq!(registry.remove(NOW, &caller, by_regex(".*")), Ok(0));
        assert!(registry.register(NOW, &caller, request("nameserver")).is_err());
        assert!(registry.set_metadata(NOW, &caller, "nameserver", Vec::new()).is_err());
        assert!(registry.renew(NOW, &caller, "nameserver", Incarnation(0)).is_err() || caller == Role::Nameserver);
    }
    let record = registry.lookup(NOW, "nameserver").unwrap();
    assert_eq!(record.uri.to_string(), "quic://127.0.0.1:9090");
    assert_eq!(tags_of(&registry, "nameserver"), [NAMESERVER_TAG]);
    let revision = registry.revision();
    registry.register_self("quic://127.0.0.1:9090".parse().unwrap(), NOW);
    assert_eq!(registry.revision(), revision, "an equal registration is a change");
}

#[test]
fn unicode_name_is_registered_and_found() {
    let mut registry = registry();
    admin(&mut registry, permanent("unicode\u{20ac}"));
    assert_eq!(registry.lookup(NOW, "unicode\u{20ac}").unwrap().name.as_str(), "unicode\u{20ac}");
    assert_eq!(names(&registry, regex("unicode.$")), ["unicode\u{20ac}"]);
}

#[test]
fn listing_filters_by_prefix_or_anchored_expression() {
    let mut registry = registry();
    for name in ["objects.1", "objects.2", "objects.3", "other.a", "other.b", "other.c"] {
        admin(&mut registry, permanent(&format!("test.{name}")));
    }
    admin(&mut registry, permanent("entirely.else"));
    admin(&mut registry, permanent("Test_%"));
    assert_eq!(names(&registry, ListQuery::default()).len(), 9);
    assert_eq!(names(&registry, prefix("")).len(), 9);
    assert_eq!(names(&registry, regex("")).len(), 9);
    assert_eq!(names(&registry, prefix("nothing")), [""; 0]);
    assert_eq!(names(&registry, prefix("no\nname")), [""; 0]);
    assert_eq!(names(&registry, prefix("test.")).len(), 6);
    assert_eq!(names(&registry, prefix("test_")), [""; 0], "literal");
    assert_eq!(names(&registry, prefix("Test_%")), ["Test_%"]);
    assert_eq!(names(&registry, regex(".+other..")).len(), 3);
    assert_eq!(names(&registry, regex(r"\d{10}")), [""; 0]);
    assert_eq!(names(&registry, regex("other")), [""; 0], "anchored at the start");
    assert_eq!(names(&registry, regex("test.o")).len(), 6, "but not at the end");
    assert_eq!(names(&registry, regex("x|e|other")), ["entirely.else"], "the anchor holds for every branch");
    assert_eq!(names(&registry, regex("(?i)TEST_")), ["Test_%"]);
    assert_eq!(names(&registry, regex("(?x) e # a comment")), ["entirely.else"]);
}

#[test]
fn invalid_expression_is_rejected() {
    let mut registry = registry();
    for bad in ["((((((broken", "a)|(?:b", r"(a)\1", "(?=a)", &"a".repeat(2000), r"(\pL{200}){200}"] {
        let refused = Query::try_from(regex(bad)).map(drop);
        assert!(matches!(refused, Err(NameError::InvalidQuery(_))), "{bad}: {refused:?}");
        assert!(matches!(registry.remove(NOW, &Role::Admin, by_regex(bad)), Err(NameError::InvalidQuery(_))));
    }
    let both = ListQuery { prefix: Some("a".into()), ..regex("a") };
    assert!(matches!(Query::try_from(both), Err(NameError::InvalidQuery(_))));
}

#[test]
fn tags_are_a_set_and_are_replaced_as_a_whole() {
    let mut registry = registry();
    admin(&mut registry, tagged("meta1", &["c", "a", "b"]));
    admin(&mut registry, tagged("meta3", &["p", "q", "r", "r", "q"]));
    assert_eq!(tags_of(&registry, "meta1"), ["a", "b", "c"]);
    assert_eq!(tags_of(&registry, "meta3"), ["p", "q", "r"]);

    registry.set_metadata(NOW, &Role::Admin, "meta1", texts(&["two", "one", "two"])).unwrap();
    assert_eq!(tags_of(&registry, "meta1"), ["one", "two"]);
    admin(&mut registry, Register { uri: "quic://h:1".into(), ..permanent("meta1") });
    assert_eq!(tags_of(&registry, "meta1"), ["one", "two"], "kept when none are given");
    registry.set_metadata(NOW, &Role::Admin, "meta1", Vec::new()).unwrap();
    assert_eq!(tags_of(&registry, "meta1"), [""; 0]);

    let unknown = registry.set_metadata(NOW, &Role::Admin, "unknown", Vec::new());
    assert_eq!(unknown, Err(NameError::UnknownName("unknown".into())));
    let bad = registry.set_metadata(NOW, &Role::Admin, "meta1", texts(&[""]));
    assert!(matches!(bad, Err(NameError::InvalidTag(_))));
    let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
    let full = registry.register(NOW, &Role::Admin, Register { tags: Some(many), ..permanent("many") });
    assert!(matches!(full, Err(NameError::LimitReached { limit: 64, .. })));
}

#[test]
fn yplookup_finds_names_by_all_or_any_tags() {
    let mut registry = registry();
    admin(&mut registry, tagged("meta1", &["a", "b", "c"]));
    admin(&mut registry, tagged("meta2", &["x", "y", "z"]));
    admin(&mut registry, tagged("meta3", &["k", "l", "c"]));
    let all = |tags: &[&str]| TagQuery { all: Some(texts(tags)), ..TagQuery::default() };
    let any = |tags: &[&str]| TagQuery { any: Some(texts(tags)), ..TagQuery::default() };
    assert_eq!(names(&registry, all(&["a", "c"])), ["meta1"]);
    assert_eq!(names(&registry, all(&["c"])), ["meta1", "meta3"]);
    for none in [all(&["a", "wrong"]), all(&["a", "b", "c", "wrong"]), all(&["a", "c", "x"]), all(&[])] {
        assert_eq!(names(&registry, none), [""; 0]);
    }
    assert_eq!(names(&registry, any(&["1", "2"])), [""; 0]);
    assert_eq!(names(&registry, any(&["1", "a"])), ["meta1"]);
    assert_eq!(names(&registry, any(&["1", "a", "z"])), ["meta1", "meta2"]);
    assert_eq!(names(&registry, any(&[])), [""; 0]);
    assert_eq!(names(&registry, TagQuery::default()), [""; 0]);
    let both = TagQuery { any: Some(texts(&["a"])), ..all(&["a"]) };
    assert!(matches!(Query::try_from(both), Err(NameError::InvalidQuery(_))));
}

#[test]
fn pages_are_bounded_by_number_and_bytes_and_are_complete() {
    let mut registry = registry();
    let wide: Vec<String> = (0..64).map(|number| format!("{number:0>128}")).collect();
    for number in 0..2500 {
        admin(&mut registry, permanent(&format!("n.{number:05}")));
    }
    for number in 0..100 {
        admin(&mut registry, Register { tags: Some(wide.clone()), ..permanent(&format!("w.{number:05}")) });
    }
    let all = |query: ListQuery| {
        let (mut query, mut names, mut pages) = (query, Vec::new(), 0);
        loop {
            let page = registry.page(NOW, &query.clone().try_into().unwrap());
            assert!(page.records.len() <= crate::params::NAMES_PER_PAGE);
            let bytes = postcard::to_stdvec(&page).unwrap().len();
            assert!(bytes < shared::limits::PAGE_BYTES + 300, "{bytes}");
            names.extend(page.records.into_iter().map(|record| record.name));
            pages += 1;
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        assert!(names.is_sorted(), "names are out of order");
        (names.len(), pages)
    };
    assert_eq!(all(prefix("n.")), (2500, 3));
    assert_eq!(all(prefix("n.000")), (100, 1));
    assert_eq!(all(prefix("w.")), (100, 2), "half a MiB holds about sixty records of 8.5 KB");
    assert_eq!(all(regex("w.0000")), (10, 1));
    assert_eq!(all(ListQuery::default()).0, 2601);
    assert_eq!(all(ListQuery { after: Some("w.00098".parse().unwrap()), ..ListQuery::default() }), (1, 1));
    assert_eq!(all(ListQuery { after: Some("w.00099".parse().unwrap()), ..prefix("n.") }), (0, 1));
}

#[test]
fn filter_with_few_matches_returns_an_empty_page_with_a_next_one() {
    let mut registry = registry();
    for number in 0..crate::params::NAMES_SCANNED_PER_PAGE {
        admin(&mut registry, permanent(&format!("n{number:06}")));
    }
    admin(&mut registry, permanent("z"));
    let page = registry.page(NOW, &regex("z").try_into().unwrap());
    assert!(page.records.is_empty() && page.next.is_some());
    let rest = registry.page(NOW, &ListQuery { after: page.next, ..regex("z") }.try_into().unwrap());
    assert_eq!((rest.records.len(), rest.next), (1, None));
}

#[test]
fn name_of_another_owner_can_be_changed_by_an_admin_only() {
    let mut registry = registry();
    let (a, b) = (peer("a"), peer("b"));
    registry.register(NOW, &a, request("service.x")).unwrap();
    registry.register(NOW, &b, request("service.y")).unwrap();
    let denied =
        |result: Result<(), NameError>| assert!(matches!(result, Err(NameError::NotAuthorised(_))), "{result:?}");
    denied(registry.register(NOW, &b, request("service.x")).map(drop));
    denied(registry.set_metadata(NOW, &b, "service.x", Vec::new()).map(drop));
    denied(registry.renew(NOW, &b, "service.x", Incarnation(1)).map(drop));
    denied(registry.renew(NOW, &Role::Admin, "service.x", Incarnation(1)).map(drop));
    denied(registry.remove(NOW, &b, by_name("service.x")).map(drop));
    denied(registry.register(NOW, &a, permanent("service.z")).map(drop));
    denied(registry.register(NOW, &Role::Nameserver, request("service.z")).map(drop));
    assert_eq!(registry.remove(NOW, &b, by_prefix("service")), Ok(1), "its own only");
    assert_eq!(registry.remove(NOW, &b, by_regex(".*")), Ok(0));
    assert_eq!(names(&registry, prefix("service")), ["service.x"]);

    registry.set_metadata(NOW, &Role::Admin, "service.x", texts(&["t"])).unwrap();
    registry.renew(NOW, &a, "service.x", Incarnation(1)).expect("a change of tags by an admin keeps the owner");
    admin(&mut registry, request("service.x"));
    denied(registry.renew(NOW, &a, "service.x", Incarnation(1)).map(drop));
    assert_eq!(remove(&mut registry, by_prefix("service")), 1);
}

#[test]
fn peer_name_of_another_peer_and_tracker_name_cannot_be_registered() {
    let mut registry = registry();
    registry.register(NOW, &peer("a"), request("peer.a")).unwrap();
    for (caller, name) in [
        (peer("a"), "peer.b"),
        (peer("a"), "peer.A"),
        (peer("a"), "peer."),
        (Role::Admin, "peer.b"),
        (peer("a"), "tracker.1"),
        (peer("a"), "tracker.x"),
        (Role::Admin, "tracker.1"),
    ] {
        let denied = registry.register(NOW, &caller, request(name));
        assert!(matches!(denied, Err(NameError::NotAuthorised(_))), "{caller} {name}: {denied:?}");
    }
    assert_eq!(remove(&mut registry, by_name("peer.a")), 1, "an admin may remove it");
}

#[test]
fn lease_ends_unless_it_is_renewed() {
    let mut registry = registry();
    let a = peer("a");
    let granted = registry.register(NOW, &a, request("peer.a")).unwrap();
    assert_eq!(granted.lease, Some(Duration::from_secs(10)));
    let revision = registry.revision();
    let later = NOW + Duration::from_secs(9);
    assert_eq!(registry.renew(later, &a, "peer.a", Incarnation(1)), Ok(granted));
    assert_eq!(registry.revision(), revision, "a renewal is a change");

    let last = later + Duration::from_micros(9_999_999);
    registry.expire(last);
    assert!(registry.lookup(last, "peer.a").is_ok());
    assert_eq!(registry.next_deadline(), Some(later + Duration::from_secs(10)));
    let over = later + Duration::from_secs(10);
    // The name is invisible at once, before its removal.
    assert!(registry.lookup(over, "peer.a").is_err());
    assert_eq!(registry.count(over), 1);
    assert_eq!(registry.page(over, &ListQuery::default().try_into().unwrap()).records.len(), 1);
    assert!(registry.renew(over, &a, "peer.a", Incarnation(1)).is_err());
    registry.expire(over);
    assert_eq!(registry.revision().0, revision.0 + 1, "the end of a lease is one change");
    assert_eq!(registry.count(over), 1);
    assert_eq!(registry.next_deadline(), None);
}

#[test]
fn expired_name_can_be_registered_before_its_removal() {
    let mut registry = registry();
    registry.register(NOW, &peer("a"), tagged_lease("service.x", &["old"])).unwrap();
    let over = NOW + Duration::from_secs(10);
    let request = Register { condition: Condition::IfAbsent, ..request("service.x") };
    registry.register(over, &peer("b"), request).unwrap();
    registry.expire(over);
    let record = registry.lookup(over, "service.x").unwrap();
    assert!(record.tags.is_empty(), "the tags of the expired name were inherited");
    assert!(registry.renew(over, &peer("b"), "service.x", Incarnation(1)).is_ok());
}

fn tagged_lease(name: &str, tags: &[&str]) -> Register {
    Register { tags: Some(texts(tags)), ..request(name) }
}

#[test]
fn expiry_is_bounded_and_the_remainder_is_due_at_once() {
    let mut registry = registry();
    for number in 0..EXPIRIES_PER_SWEEP + 5 {
        registry.register(NOW, &peer("a"), request(&format!("n{number}"))).unwrap();
    }
    let over = NOW + Duration::from_secs(10);
    registry.settle();
    registry.expire(over);
    assert_eq!(registry.pending().len(), EXPIRIES_PER_SWEEP);
    assert_eq!(registry.count(over), 1);
    assert_eq!(registry.next_deadline(), Some(over));
    registry.expire(over);
    assert_eq!(registry.next_deadline(), None);
}

#[test]
fn change_of_tags_does_not_renew_the_lease() {
    let mut registry = registry();
    registry.register(NOW, &peer("a"), request("peer.a")).unwrap();
    registry.set_metadata(NOW + Duration::from_secs(5), &peer("a"), "peer.a", texts(&["t"])).unwrap();
    assert_eq!(registry.next_deadline(), Some(NOW + Duration::from_secs(10)));
}

#[test]
fn equal_registration_renews_the_lease_without_a_change() {
    let mut registry = registry();
    let first = registry.register(NOW, &peer("a"), tagged_lease("peer.a", &["t"])).unwrap();
    let later = NOW + Duration::from_secs(5);
    assert_eq!(registry.register(later, &peer("a"), request("peer.a")), Ok(first));
    assert_eq!(registry.next_deadline(), Some(later + Duration::from_secs(10)));
    let moved = Register { uri: "quic://h:1".into(), ..request("peer.a") };
    assert!(registry.register(later, &peer("a"), moved).unwrap().revision > first.revision);
}

#[test]
fn earlier_run_of_a_peer_is_superseded_while_the_later_one_lives() {
    let mut registry = registry();
    let run = |number| Register { incarnation: Incarnation(number), ..request("peer.a") };
    let (first, second) = (Incarnation(5), Incarnation(9));
    registry.register(NOW, &peer("a"), run(5)).unwrap();
    assert!(matches!(registry.renew(NOW, &peer("a"), "peer.a", second), Err(NameError::UnknownName(_))));
    registry.register(NOW, &peer("a"), run(9)).unwrap();
    assert_eq!(registry.register(NOW, &peer("a"), run(5)), Err(NameError::Superseded { by: second }));
    assert_eq!(registry.renew(NOW, &peer("a"), "peer.a", first), Err(NameError::Superseded { by: second }));
    assert!(registry.renew(NOW, &peer("a"), "peer.a", second).is_ok());
    let over = NOW + Duration::from_secs(10);
    assert!(registry.register(over, &peer("a"), run(5)).is_ok(), "an expired run still supersedes");
}

#[test]
fn register_with_a_stale_revision_is_rejected() {
    let mut registry = registry();
    let first = admin(&mut registry, permanent("x")).revision;
    let at = |revision, uri: &str| Register {
        condition: Condition::IfRevision(revision),
        uri: uri.into(),
        ..permanent("x")
    };
    let second = admin(&mut registry, at(first, "quic://h:2")).revision;
    let stale = registry.register(NOW, &Role::Admin, at(first, "quic://h:3"));
    assert_eq!(stale, Err(NameError::RevisionMismatch { actual: Some(second) }));
    remove(&mut registry, by_name("x"));
    let gone = registry.register(NOW, &Role::Admin, at(second, "quic://h:3"));
    assert_eq!(gone, Err(NameError::RevisionMismatch { actual: None }));
}

#[test]
fn identity_at_its_limit_cannot_register_another_name() {
    let mut registry = registry();
    for number in 0..MAX_NAMES_PER_IDENTITY {
        registry.register(NOW, &peer("a"), request(&format!("n{number}"))).unwrap();
    }
    let full = registry.register(NOW, &peer("a"), request("one more"));
    assert!(matches!(full, Err(NameError::LimitReached { limit: 10_000, .. })), "{full:?}");
    let own = Register { uri: "quic://h:1".into(), ..request("n0") };
    assert!(registry.register(NOW, &peer("a"), own).is_ok(), "an own name cannot be changed at the limit");
    assert!(registry.register(NOW, &peer("b"), request("peer.b")).is_ok(), "the limit applies to another identity");
    registry.remove(NOW, &peer("a"), by_name("n1")).unwrap();
    assert!(registry.register(NOW, &peer("a"), request("one more")).is_ok());
}

#[test]
fn roll_back_restores_tables_indices_and_deadlines() {
    let mut registry = registry();
    registry.register(NOW, &peer("a"), request("peer.a")).unwrap();
    registry.register(NOW, &peer("b"), tagged_lease("service", &["t"])).unwrap();
    registry.settle();
    let (before, due) = (registry.snapshot(), registry.next_deadline());

    let later = NOW + Duration::from_secs(1);
    admin(&mut registry, permanent("service"));
    admin(&mut registry, permanent("new"));
    remove(&mut registry, by_name("peer.a"));
    registry.register(later, &peer("a"), request("peer.a")).unwrap();
    registry.expire(NOW + Duration::from_secs(60));
    assert_eq!(registry.pending().len(), 5);
    registry.roll_back();

    assert_eq!(registry.snapshot(), before);
    assert_eq!(registry.next_deadline(), due);
    assert_eq!(registry.pending(), []);
    assert!(registry.register(NOW, &peer("a"), request("service")).is_err(), "the owner was not restored");
    assert_eq!(registry.remove(NOW, &peer("b"), by_regex(".*")), Ok(1));
}

#[test]
fn restore_restarts_every_lease() {
    let mut before = registry();
    before.register(NOW, &peer("a"), request("peer.a")).unwrap();
    let start = Timestamp::from_origin(Duration::from_secs(3));
    let after = Registry::restore(before.snapshot(), start);
    assert_eq!(after.snapshot(), before.snapshot());
    assert_eq!(after.next_deadline(), Some(start + Duration::from_secs(10)));
    assert!(after.lookup(start + Duration::from_secs(9), "peer.a").is_ok());
}
