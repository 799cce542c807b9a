//! The behaviour that Pyro5's `tests/test_naming.py` and `test_core.py` require, over the network and on every storage;
//! then the behaviour that Pyro5 does not have.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod common;

use std::time::Duration;

use common::{DEADLINE, Member, TestServer, leased, permanent, texts};
use nameserver::{config::StorageChoice, params::MIN_LEASE};
use shared::{
    epoch::Epoch,
    error::FailureCode,
    id::{Incarnation, Role},
    name::Endpoint,
    net::session::SessionConfig,
    rpc::nameserver::{
        Claim, ClaimError, Condition, ListQuery, MintToken, NameError, Register, Selector, ServerInfo, TagQuery,
    },
};

/// Defines a test of each behaviour for each storage.
macro_rules! on_every_storage {
    ($($behaviour:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour(super::TestServer::start(super::StorageChoice::Memory).await).await;
            })+
        }
        mod redb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour(super::TestServer::start(super::StorageChoice::Redb).await).await;
            })+
        }
    };
}

on_every_storage!(
    register_overwrites_and_rejects_invalid_input,
    remove_counts_names_and_requires_one_selector,
    own_entry_cannot_be_changed,
    unicode_name_is_registered_and_found,
    list_filters_by_prefix_or_expression,
    yplookup_all_follows_changes_of_tags,
    yplookup_any_finds_names_with_any_tag,
    invalid_tag_is_rejected_and_empty_set_accepted,
    concurrent_removes_count_each_name_once,
    expired_name_is_removed_and_renewed_name_stays,
    nameserver_is_reached_by_address_and_by_host_name,
    listing_over_several_pages_is_complete,
    name_of_another_owner_cannot_be_changed,
    seat_is_granted_once_an_epoch_and_expires,
    token_enrols_within_its_uses_and_for_its_peer,
);

fn name(text: &str) -> Selector {
    Selector { name: Some(text.to_owned()), ..Selector::default() }
}

fn prefix(text: &str) -> ListQuery {
    ListQuery { prefix: Some(text.to_owned()), ..ListQuery::default() }
}

fn regex(text: &str) -> ListQuery {
    ListQuery { regex: Some(text.to_owned()), ..ListQuery::default() }
}

fn selected(query: ListQuery) -> Selector {
    Selector { name: None, prefix: query.prefix, regex: query.regex }
}

fn tagged(name: &str, tags: &[&str]) -> Register {
    Register { tags: Some(texts(tags)), ..permanent(name) }
}

async fn tags(admin: &Member, name: &str) -> Vec<String> {
    admin.lookup(name).await.unwrap().tags.into_iter().map(Into::into).collect()
}

async fn register_overwrites_and_rejects_invalid_input(server: TestServer) {
    let admin = server.admin().await;
    for object in ["test.object1", "test.object2", "test.object3", "test.sub.objectA", "test.sub.objectB"] {
        admin.register(permanent(object)).await.unwrap();
    }
    let moved = Register { uri: "quic://[::1]:1111".to_owned(), ..permanent("test.object1") };
    admin.register(moved).await.expect("an existing name can be overwritten");
    assert_eq!(admin.lookup("test.object1").await.unwrap().uri.to_string(), "quic://[::1]:1111");
    let safe = Register { condition: Condition::IfAbsent, ..permanent("test.object1") };
    assert!(matches!(admin.register(safe).await, Err(NameError::NameExists(_))));
    assert!(matches!(admin.lookup("unknown_object").await, Err(NameError::UnknownName(_))));
    for object in ["unknown_object", "test.object1", "test.object2", "test.object3"] {
        admin.remove(name(object)).await.unwrap();
    }
    assert_eq!(admin.names(ListQuery::default()).await, ["nameserver", "test.sub.objectA", "test.sub.objectB"]);

    for bad in ["THISVALUEISNOTANURI", "", "5555", "quic://h:0", &"x".repeat(3000)] {
        let refused = admin.register(Register { uri: bad.to_owned(), ..permanent("test.x") }).await;
        assert!(matches!(refused, Err(NameError::InvalidUri(_))), "{bad}: {refused:?}");
    }
    for bad in ["", "a\0b", &"x".repeat(256)] {
        assert!(matches!(admin.register(permanent(bad)).await, Err(NameError::InvalidName(_))), "{bad:?}");
    }
    assert_eq!(admin.count().await, 3);
}

async fn remove_counts_names_and_requires_one_selector(server: TestServer) {
    let admin = server.admin().await;
    for number in 0..20 {
        admin.register(permanent(&format!("test.{number}"))).await.unwrap();
    }
    assert_eq!(admin.count().await, 21);
    assert_eq!(admin.remove(name("wrong")).await, Ok(0));
    assert_eq!(admin.remove(selected(prefix("wrong"))).await, Ok(0));
    assert_eq!(admin.remove(selected(regex("wrong.*"))).await, Ok(0));
    assert_eq!(admin.remove(name("test.0")).await, Ok(1));
    assert_eq!(admin.remove(selected(prefix("test.1"))).await, Ok(11));
    assert_eq!(admin.remove(selected(regex(r"test\.."))).await, Ok(8));
    assert_eq!(admin.count().await, 1);
    assert!(matches!(admin.remove(Selector::default()).await, Err(NameError::InvalidQuery(_))));
}

async fn own_entry_cannot_be_changed(server: TestServer) {
    let admin = server.admin().await;
    assert_eq!(admin.remove(name("nameserver")).await, Ok(0));
    assert_eq!(admin.remove(selected(prefix("name"))).await, Ok(0));
    assert_eq!(admin.remove(selected(regex("name.*"))).await, Ok(0));
    assert!(matches!(admin.register(permanent("nameserver")).await, Err(NameError::NotAuthorised(_))));
    assert!(matches!(admin.set_metadata("nameserver", &[]).await, Err(NameError::NotAuthorised(_))));
    assert_eq!(tags(&admin, "nameserver").await, ["brasa.nameserver"]);
}

async fn unicode_name_is_registered_and_found(server: TestServer) {
    let admin = server.admin().await;
    admin.register(tagged("unicodename\u{20ac}", &["\u{20ac}"])).await.unwrap();
    assert_eq!(admin.lookup("unicodename\u{20ac}").await.unwrap().name.as_str(), "unicodename\u{20ac}");
    assert_eq!(admin.names(prefix("unicodename\u{20ac}")).await.len(), 1);
    assert_eq!(tags(&admin, "unicodename\u{20ac}").await, ["\u{20ac}"]);
}

async fn list_filters_by_prefix_or_expression(server: TestServer) {
    let admin = server.admin().await;
    for object in ["objects.1", "objects.2", "objects.3", "other.a", "other.b", "other.c"] {
        admin.register(permanent(&format!("test.{object}"))).await.unwrap();
    }
    admin.register(permanent("entirely.else")).await.unwrap();
    for (query, found) in [
        (ListQuery::default(), 8),
        (prefix("nothing"), 0),
        (prefix("test."), 6),
        (prefix("test_"), 0),
        (prefix("TEST."), 0),
        (regex(".+other.."), 3),
        (regex("other"), 0),
        (regex(r"\d\d\d\d\d\d\d\d\d\d"), 0),
    ] {
        assert_eq!(admin.names(query.clone()).await.len(), found, "{query:?}");
    }
    assert!(matches!(admin.list(regex("((((((broken")).await, Err(NameError::InvalidQuery(_))));
    assert!(matches!(admin.remove(selected(regex("((broken"))).await, Err(NameError::InvalidQuery(_))));
    let both = ListQuery { prefix: Some("a".to_owned()), ..regex("a") };
    assert!(matches!(admin.list(both).await, Err(NameError::InvalidQuery(_))));
}

async fn yplookup_all_follows_changes_of_tags(server: TestServer) {
    let admin = server.admin().await;
    admin.register(tagged("meta1", &["a", "b", "c"])).await.unwrap();
    admin.register(tagged("meta2", &["x", "y", "z"])).await.unwrap();
    admin.register(tagged("meta3", &["p", "q", "r", "r", "q"])).await.unwrap();
    assert_eq!(tags(&admin, "meta3").await, ["p", "q", "r"]);
    let listed = admin.list(prefix("meta")).await.unwrap().records;
    let listed: Vec<_> = listed.iter().map(|record| (record.name.as_str(), record.tags.len())).collect();
    assert_eq!(listed, [("meta1", 3), ("meta2", 3), ("meta3", 3)]);

    let all = async |wanted: &[&str]| {
        let query = TagQuery { all: Some(texts(wanted)), ..TagQuery::default() };
        let page = admin.yplookup(query).await.unwrap();
        page.records.into_iter().map(|record| String::from(record.name)).collect::<Vec<_>>()
    };
    assert_eq!(all(&["a", "c"]).await, ["meta1"]);
    for none in [&["a", "wrong"][..], &["a", "b", "c", "wrong"], &["a", "c", "x"], &[]] {
        assert_eq!(all(none).await, [""; 0]);
    }

    assert!(matches!(admin.set_metadata("notexistingname", &[]).await, Err(NameError::UnknownName(_))));
    admin.set_metadata("meta1", &["one", "two", "three", "three", "two"]).await.unwrap();
    assert_eq!(tags(&admin, "meta1").await, ["one", "three", "two"]);
    assert_eq!(all(&["a"]).await, [""; 0]);
    admin.remove(name("meta1")).await.unwrap();
    admin.remove(name("meta3")).await.unwrap();
    assert_eq!(admin.names(regex("meta2.*")).await, ["meta2"]);
    assert_eq!(all(&["one"]).await, [""; 0]);
}

async fn yplookup_any_finds_names_with_any_tag(server: TestServer) {
    let admin = server.admin().await;
    admin.register(tagged("meta1", &["a", "b", "c"])).await.unwrap();
    admin.register(tagged("meta2", &["x", "y", "z"])).await.unwrap();
    admin.register(tagged("meta3", &["k", "l", "m"])).await.unwrap();
    for (wanted, found) in [(&["1", "2", "3"][..], 0), (&["1", "2", "a"], 1), (&["1", "2", "a", "z"], 2), (&[], 0)] {
        let query = TagQuery { any: Some(texts(wanted)), ..TagQuery::default() };
        assert_eq!(admin.yplookup(query).await.unwrap().records.len(), found, "{wanted:?}");
    }
    assert_eq!(admin.yplookup(TagQuery::default()).await.unwrap().records, []);
    let both = TagQuery { all: Some(texts(&["a"])), any: Some(texts(&["a"])), after: None };
    assert!(matches!(admin.yplookup(both).await, Err(NameError::InvalidQuery(_))));
}

async fn invalid_tag_is_rejected_and_empty_set_accepted(server: TestServer) {
    let admin = server.admin().await;
    admin.register(tagged("meta1", &[])).await.unwrap();
    assert_eq!(tags(&admin, "meta1").await, [""; 0]);
    admin.set_metadata("meta1", &[]).await.unwrap();
    for bad in ["", "a\nb", &"x".repeat(129)] {
        assert!(matches!(admin.register(tagged("meta2", &[bad])).await, Err(NameError::InvalidTag(_))));
        assert!(matches!(admin.set_metadata("meta1", &[bad]).await, Err(NameError::InvalidTag(_))));
        let query = TagQuery { any: Some(texts(&[bad])), ..TagQuery::default() };
        assert!(matches!(admin.yplookup(query).await, Err(NameError::InvalidTag(_))));
    }
    assert!(admin.lookup("meta2").await.is_err());
}

async fn concurrent_removes_count_each_name_once(server: TestServer) {
    let admin = server.admin().await;
    for number in 0..100 {
        admin.register(permanent(&format!("test.{number}"))).await.unwrap();
    }
    let removals = (0..10).flat_map(|_| (0..100).map(|number| admin.remove(name(&format!("test.{number}")))));
    let removed = futures::future::join_all(removals).await;
    assert_eq!(removed.into_iter().map(Result::unwrap).sum::<u64>(), 100, "a name was removed twice");
    assert_eq!(admin.count().await, 1);
}

async fn expired_name_is_removed_and_renewed_name_stays(server: TestServer) {
    let (admin, peer) = (server.admin().await, server.peer("peer1").await);
    let granted = peer.register(leased("peer.peer1", Duration::ZERO)).await.unwrap();
    assert_eq!(granted.lease, Some(MIN_LEASE));
    admin.register(permanent("stays")).await.unwrap();
    // A renewed name outlives its first lease.
    let pause = MIN_LEASE / 3;
    for _ in 0..6 {
        tokio::time::sleep(pause).await;
        peer.renew("peer.peer1", 1).await.unwrap();
    }
    // Without renewals the name is removed.
    let before = admin.position().await;
    assert_eq!(admin.count().await, 3);
    admin.wait_for_removal("peer.peer1", before).await;
    assert!(matches!(peer.renew("peer.peer1", 1).await, Err(NameError::UnknownName(_))));
    assert_eq!(admin.names(ListQuery::default()).await, ["nameserver", "stays"]);
}

async fn nameserver_is_reached_by_address_and_by_host_name(server: TestServer) {
    let port = server.instance.local_addr().port();
    let folder = server.folder.path();
    for address in [format!("127.0.0.1:{port}"), format!("localhost:{port}")] {
        let at = Endpoint::from_host_port(&address).unwrap();
        let admin = Member::open_at(folder, Role::Admin, Some(at)).await.unwrap();
        admin.register(permanent(&address)).await.unwrap();
        // The nameserver's own entry holds the address at which it answers.
        let own = admin.lookup("nameserver").await.unwrap().uri;
        assert_eq!(own.socket_addr(), Some(server.instance.local_addr()));
        Member::open_at(folder, Role::Admin, Some(own)).await.unwrap();
    }
    let unused = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Member::open_at(folder, Role::Admin, Some(unused.into())).await.map(drop).unwrap_err();
    assert_eq!(silent.code, FailureCode::NameserverUnreachable);
}

async fn listing_over_several_pages_is_complete(server: TestServer) {
    let admin = server.admin().await;
    let registrations: Vec<_> = (0..2100).map(|number| permanent(&format!("n{number:04}"))).collect();
    let registered = futures::future::join_all(registrations.into_iter().map(|request| admin.register(request))).await;
    assert!(registered.iter().all(Result::is_ok));
    let first = admin.list(prefix("n0")).await.unwrap();
    assert_eq!((first.records.len(), first.next), (1000, None));
    let names = admin.names(ListQuery::default()).await;
    assert_eq!(names.len(), 2101);
    assert!(names.is_sorted());
    assert_eq!(admin.remove(selected(regex("n."))).await, Ok(2100));
}

async fn name_of_another_owner_cannot_be_changed(server: TestServer) {
    let (admin, a, b) = (server.admin().await, server.peer("a").await, server.peer("b").await);
    let lease = Duration::from_secs(60);
    a.register(leased("peer.a", lease)).await.unwrap();
    a.register(leased("service", lease)).await.unwrap();
    let denied =
        |result: Result<(), NameError>| assert!(matches!(result, Err(NameError::NotAuthorised(_))), "{result:?}");
    denied(b.register(leased("peer.a", lease)).await.map(drop));
    denied(b.register(leased("service", lease)).await.map(drop));
    denied(b.register(leased("tracker.1", lease)).await.map(drop));
    denied(b.register(permanent("mine")).await.map(drop));
    denied(b.remove(name("service")).await.map(drop));
    denied(b.set_metadata("service", &[]).await.map(drop));
    denied(b.renew("service", 1).await.map(drop));
    denied(admin.register(leased("peer.a", lease)).await.map(drop));
    assert_eq!(b.remove(selected(regex(".*"))).await, Ok(0));
    assert_eq!(a.remove(name("service")).await, Ok(1));

    let second = Register { incarnation: Incarnation(2), ..leased("peer.a", lease) };
    a.register(second).await.unwrap();
    assert_eq!(a.renew("peer.a", 1).await, Err(NameError::Superseded { by: Incarnation(2) }));
    assert_eq!(admin.remove(name("peer.a")).await, Ok(1));
}

async fn seat_is_granted_once_an_epoch_and_expires(server: TestServer) {
    let (a, b) = (server.peer("a").await, server.peer("b").await);
    for (peer, name) in [(&a, "peer.a"), (&b, "peer.b")] {
        peer.register(leased(name, Duration::from_secs(60))).await.unwrap();
    }
    let claim = async |peer: &Member, epoch, expected, votes: &[&str], force| {
        let claim = Claim {
            epoch: Epoch(epoch),
            expected_epoch: Epoch(expected),
            endpoint: "quic://127.0.0.1:1".parse().unwrap(),
            votes: votes.iter().map(|id| id.parse().unwrap()).collect(),
            force,
        };
        peer.call(|c, cx| async move { c.claim(cx, claim).await }).await
    };
    let seat = async || a.call(|c, cx| async move { c.seat(cx).await }).await;
    // Of two concurrent claims one is granted; the error of the other names the holder.
    let (first, second) = tokio::join!(claim(&a, 1, 0, &["a"], false), claim(&b, 1, 0, &["b"], false));
    let (winner, loser) = if first.is_ok() { (&a, second) } else { (&b, first) };
    let view = seat().await;
    assert_eq!(view.epoch_high, Epoch(1));
    assert_eq!(loser, Err(ClaimError::Moved(view)));
    let page = a.list(prefix("tracker.")).await.unwrap();
    assert_eq!(page.records[0].name.as_str(), "tracker.1");

    winner.call(|c, cx| async move { c.renew_seat(cx, Epoch(1)).await }).await.unwrap();
    claim(&b, 2, 1, &["a", "b"], true).await.expect("a forced claim with a majority");
    assert!(a.call(|c, cx| async move { c.renew_seat(cx, Epoch(1)).await }).await.is_err());
    assert_eq!(a.names(prefix("tracker.")).await, ["tracker.2"]);
    b.call(|c, cx| async move { c.resign(cx, Epoch(2)).await }).await.unwrap();
    let before = a.position().await;
    claim(&a, 3, 2, &["a"], false).await.unwrap();
    a.wait_for_removal("tracker.3", before).await;
    assert_eq!(a.names(prefix("tracker.")).await, [""; 0]);
    let view = seat().await;
    assert_eq!((view.seat, view.epoch_high), (None, Epoch(3)));
}

async fn token_enrols_within_its_uses_and_for_its_peer(server: TestServer) {
    let (admin, peer) = (server.admin().await, server.peer("a").await);
    let mint = async |member: &Member, uses, for_peer: Option<&str>| {
        let for_peer = for_peer.map(|id| id.parse().unwrap());
        let request = MintToken { ttl: Duration::from_secs(60), uses, for_peer };
        member.call(|c, cx| async move { c.mint_token(cx, request).await }).await
    };
    assert!(matches!(mint(&peer, 1, None).await, Err(NameError::NotAuthorised(_))));

    // Each member has its own state folder, like a separate machine.
    let join = async |token: &str, role: Role| {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().to_owned();
        let join = Some(token.parse().unwrap());
        let member = Member::open_with(&SessionConfig { role, state_dir, nameserver: None, join }).await?;
        let info: ServerInfo = member.call(|c, cx| async move { c.ping(cx).await }).await;
        assert_eq!(info.advertised, server.instance.advertised());
        Ok::<_, shared::error::Failure>(member)
    };
    let b = || Role::Peer("b".parse().unwrap());
    let token = mint(&admin, 1, None).await.unwrap();
    join(&token, Role::Admin).await.map(drop).expect_err("a join token does not enrol an admin");
    let member = join(&token, b()).await.unwrap();
    member.register(leased("peer.b", Duration::from_secs(60))).await.unwrap();
    for taken in [b(), Role::Peer("c".parse().unwrap())] {
        let refused = join(&token, taken).await.map(drop).unwrap_err();
        assert_eq!(refused.code, FailureCode::NotAuthorised, "a used-up token was accepted");
    }
    let many = mint(&admin, 5, None).await.unwrap();
    assert!(join(&many, b()).await.is_err(), "an id was bound to a second key");
    let for_b = mint(&admin, 1, Some("b")).await.unwrap();
    assert!(join(&for_b, Role::Peer("c".parse().unwrap())).await.is_err(), "a token for another peer was accepted");
    join(&for_b, b()).await.expect("a token for this id replaces its key");
    join(&many, Role::Peer("c".parse().unwrap())).await.unwrap();

    // A token with this authority's fingerprint that the nameserver did not mint.
    let mut forged: certs::JoinToken = many.parse().unwrap();
    forged = certs::JoinToken::new(forged.authority, forged.addresses).unwrap();
    let refused = join(&forged.to_string(), Role::Peer("d".parse().unwrap())).await.map(drop).unwrap_err();
    assert_eq!(refused.code, FailureCode::NotAuthorised);
}

#[tokio::test]
async fn nameserver_on_ipv6_is_found_by_its_local_token() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = nameserver::config::Config::new(folder.path());
    config.host = shared::settings::parse_host("::1").unwrap();
    config.port = 0;
    let server = match nameserver::server::Server::start(config).await {
        Ok(server) => server,
        Err(failure) => {
            assert!(std::net::UdpSocket::bind("[::1]:0").is_err(), "{failure}");
            return eprintln!("skipped: this machine has no IPv6");
        }
    };
    let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
    assert_eq!(admin.lookup("nameserver").await.unwrap().uri.to_string(), format!("quic://{}", server.local_addr()));
    assert!(server.local_addr().is_ipv6());
    server.shutdown().await;
}

#[tokio::test]
async fn second_nameserver_in_the_same_folder_is_rejected() {
    let server = TestServer::start(StorageChoice::Memory).await;
    let mut config = nameserver::config::Config::new(server.folder.path());
    config.port = 0;
    let refused = nameserver::server::Server::start(config.clone()).await.map(drop).unwrap_err();
    assert_eq!(refused.code, FailureCode::AlreadyRunning);
    tokio::time::timeout(DEADLINE, server.instance.shutdown()).await.unwrap();
    nameserver::server::Server::start(config).await.expect("the folder is unlocked after the shutdown");
}
