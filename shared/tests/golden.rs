//! Golden bytes: the wire encoding of every message, in `golden/*.txt`, one line `name hex` per message.
//!
//! A difference breaks compatibility with older programs. In that case increase the number in `shared::rpc::ALPN` and
//! rewrite the files with `BRASA_GOLDEN=write cargo test -p shared --test golden`. This file does not compile after a
//! message is added to a service until the message has a line here.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path, time::Duration};

use certs::JoinToken;
use data_encoding::HEXLOWER;
use serde::{Serialize, de::DeserializeOwned};
use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    digest::ShareDigest,
    epoch::Epoch,
    file_name::InvalidFileName,
    id::{Incarnation, PeerId, Role},
    name::{Endpoint, InvalidName, InvalidTag, InvalidUri, Name},
    net::{
        CloseCode, StreamKind,
        bulk::{BulkAbort, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
        pack::{ITEM_FOLLOWS, ItemRefusal, PackAccepted, PackRequest},
    },
    rpc::{
        ALPN, ENROL_ALPN,
        enrol::{EnrolError, EnrolRequest, EnrolServiceRequest, EnrolServiceResponse, Enrolled},
        nameserver::{
            Changes, Claim, ClaimError, Condition, LeaseRequest, ListQuery, MintToken, NameChange, NameError,
            NameServiceRequest, NameServiceResponse, Page, Position, Record, Register, Registered, Revision, Seat,
            SeatGrant, SeatView, Selector, ServerInfo, TagQuery, WatchQuery,
        },
        peer::{
            DirectoryMeta, FilePage, MachineReport, PathReport, PeerInfo, PeerServiceRequest, PeerServiceResponse,
            SeatNotice, UploadReport, VoteReply, VoteRequest,
        },
        tracker::{
            Addressee, Announcement, AnnouncementKind, Heartbeat, HeartbeatAck, IndexPage, IndexedFile, ListAll, Owner,
            StandbyContact, TrackerError, TrackerServiceRequest, TrackerServiceResponse, Version, WhoHas, WireFile,
        },
    },
};
use tarpc::{ClientMessage, Request, Response, ServerError, context, trace};

/// Lines of one golden file.
#[derive(Default)]
struct Golden(BTreeMap<String, Vec<u8>>);

impl Golden {
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        assert!(self.0.insert(name.to_owned(), bytes.to_vec()).is_none(), "duplicate line {name}");
    }

    /// Adds a message after checking that it round-trips.
    fn message<T: Serialize + DeserializeOwned + Debug>(&mut self, name: &str, value: &T) {
        let bytes = postcard::to_stdvec(value).unwrap();
        let back: T = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{value:?}"), "{name}");
        assert_eq!(postcard::to_stdvec(&back).unwrap(), bytes, "{name}");
        self.bytes(name, &bytes);
    }

    /// Compares the lines with the file, or writes the file if `BRASA_GOLDEN=write` is set.
    fn check(self, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        if std::env::var_os("BRASA_GOLDEN").is_some_and(|mode| mode == "write") {
            let lines: String =
                self.0.iter().map(|(name, bytes)| format!("{name} {}\n", HEXLOWER.encode(bytes))).collect();
            return fs::write(path, lines).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut expected = BTreeMap::new();
        for line in text.lines() {
            let (name, hex) = line.split_once(' ').unwrap();
            let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap();
            assert!(expected.insert(name.to_owned(), bytes).is_none(), "duplicate line {name} in {file}");
        }
        for (name, bytes) in &self.0 {
            let golden = expected.remove(name).unwrap_or_else(|| panic!("{file} has no line {name}"));
            assert_eq!(HEXLOWER.encode(bytes), HEXLOWER.encode(&golden), "the encoding of {name} has changed");
        }
        assert!(expected.is_empty(), "{file} has lines without a message: {:?}", expected.keys());
    }
}

/// Adds messages and asserts that every variant of their type has at least one.
macro_rules! all_variants {
    (
        $golden:ident,
        $prefix:literal,
        $type:ident { $($variant:ident),+ $(,)? },
        [$($label:literal => $value:expr),+ $(,)?]
    ) => {{
        // The match has no wildcard, so a new variant does not compile until it is listed.
        fn variant(value: &$type) -> &'static str {
            match value { $($type::$variant { .. } => stringify!($variant)),+ }
        }
        let mut missing = vec![$(stringify!($variant)),+];
        $({
            let value: $type = $value;
            missing.retain(|name| *name != variant(&value));
            $golden.message(&format!("{}.{}", $prefix, $label), &value);
        })+
        assert!(missing.is_empty(), "no golden bytes for {missing:?} of {}", stringify!($type));
    }};
}

fn peer_id() -> PeerId {
    "peer1".parse().unwrap()
}

fn endpoint() -> Endpoint {
    "quic://10.0.0.1:40001".parse().unwrap()
}

fn name() -> Name {
    Name::peer(&peer_id())
}

fn seat() -> Seat {
    Seat { epoch: Epoch(4), peer: peer_id(), endpoint: endpoint() }
}

fn view() -> SeatView {
    SeatView { epoch_high: Epoch(4), seat: Some(seat()) }
}

fn meta() -> FileMeta {
    FileMeta {
        name: "docs/a.txt".parse().unwrap(),
        size: 3,
        hash: ContentHash([0xab; 32]),
        mtime_micros: -1,
        executable: true,
    }
}

fn prefix() -> HashPrefix {
    "abab".parse().unwrap()
}

fn record() -> Record {
    Record { name: name(), uri: endpoint(), tags: vec!["class:peer".parse().unwrap()], revision: Revision(300) }
}

fn registered(lease: Option<Duration>) -> Registered {
    Registered { revision: Revision(300), lease }
}

#[test]
fn name_service_messages_have_golden_bytes() {
    use {NameServiceRequest as Q, NameServiceResponse as A};
    let mut golden = Golden::default();
    let register = Register {
        name: "peer.peer1".to_owned(),
        uri: "quic://10.0.0.1:40001".to_owned(),
        tags: Some(vec!["class:peer".to_owned()]),
        lease: LeaseRequest::For(Duration::from_millis(10_500)),
        condition: Condition::IfRevision(Revision(300)),
        incarnation: Incarnation(7),
    };
    let permanent =
        Register { tags: None, lease: LeaseRequest::Permanent, condition: Condition::IfAbsent, ..register.clone() };
    let always = Register { condition: Condition::Always, ..permanent.clone() };
    let claim = Claim {
        epoch: Epoch(5),
        expected_epoch: Epoch(4),
        endpoint: endpoint(),
        votes: vec![peer_id(), "peer2".parse().unwrap()],
        force: true,
    };
    let mint = MintToken { ttl: Duration::from_secs(3600), uses: 1, for_peer: Some(peer_id()) };
    let text = || "peer.peer1".to_owned();
    let position = Position { run: 7, revision: Revision(300) };
    all_variants!(golden, "request", NameServiceRequest {
        Ping, Register, Renew, Lookup, SetMetadata, Remove, List, Yplookup, Count, Seat, Claim, RenewSeat, Resign,
        MintToken, Changes,
    }, [
        "ping" => Q::Ping {},
        "register" => Q::Register { request: register },
        "register.permanent" => Q::Register { request: permanent },
        "register.always" => Q::Register { request: always },
        "renew" => Q::Renew { name: text(), incarnation: Incarnation(7) },
        "lookup" => Q::Lookup { name: text() },
        "set_metadata" => Q::SetMetadata { name: text(), tags: vec!["a".to_owned(), "b".to_owned()] },
        "remove.name" => Q::Remove { selector: Selector { name: Some(text()), ..Selector::default() } },
        "remove.prefix" => Q::Remove { selector: Selector { prefix: Some(text()), ..Selector::default() } },
        "remove.regex" => Q::Remove { selector: Selector { regex: Some("p.*".to_owned()), ..Selector::default() } },
        "list" => Q::List {
            query: ListQuery { prefix: Some(text()), regex: Some("p".to_owned()), after: Some(name()) }
        },
        "list.all" => Q::List { query: ListQuery::default() },
        "yplookup" => Q::Yplookup {
            query: TagQuery { all: Some(vec!["a".to_owned()]), any: Some(vec!["b".to_owned()]), after: Some(name()) }
        },
        "count" => Q::Count {},
        "seat" => Q::Seat {},
        "claim" => Q::Claim { claim },
        "renew_seat" => Q::RenewSeat { epoch: Epoch(5) },
        "resign" => Q::Resign { epoch: Epoch(5) },
        "mint_token" => Q::MintToken { request: mint },
        "changes" => Q::Changes {
            query: WatchQuery {
                since: Some(position),
                prefix: Some(text()),
                regex: Some("p".to_owned()),
                wait: Duration::from_secs(30),
            }
        },
        "changes.first" => Q::Changes { query: WatchQuery::default() },
    ]);
    let info = ServerInfo {
        version: "0.1.0".to_owned(),
        advertised: vec![endpoint(), "quic://[fe80::1]:9090".parse().unwrap()],
        observed: "[::ffff:10.0.0.2]:5".parse().unwrap(),
        revision: Revision(300),
    };
    let page = Page { records: vec![record()], next: Some(name()), revision: Revision(300) };
    let grant = SeatGrant { epoch: Epoch(5), lease: Duration::from_millis(750) };
    all_variants!(golden, "response", NameServiceResponse {
        Ping, Register, Renew, Lookup, SetMetadata, Remove, List, Yplookup, Count, Seat, Claim, RenewSeat, Resign,
        MintToken, Changes,
    }, [
        "ping" => A::Ping(info),
        "register" => A::Register(Ok(registered(Some(Duration::from_secs(10))))),
        "register.error" => A::Register(Err(NameError::NameExists(name()))),
        "renew" => A::Renew(Ok(registered(None))),
        "lookup" => A::Lookup(Ok(record())),
        "set_metadata" => A::SetMetadata(Ok(Revision(301))),
        "remove" => A::Remove(Ok(1)),
        "list" => A::List(Ok(page.clone())),
        "yplookup" => A::Yplookup(Ok(Page { next: None, ..page })),
        "count" => A::Count(2),
        "seat" => A::Seat(view()),
        "seat.none" => A::Seat(SeatView::default()),
        "claim" => A::Claim(Ok(grant.clone())),
        "claim.error" => A::Claim(Err(ClaimError::Moved(view()))),
        "renew_seat" => A::RenewSeat(Ok(grant)),
        "resign" => A::Resign(Ok(())),
        "mint_token" => A::MintToken(Ok("brasa1-aaaa".to_owned())),
        "changes.delta" => A::Changes(Ok(Changes::Delta {
            position,
            changes: vec![
                NameChange { name: name(), record: Some(record()) },
                NameChange { name: name(), record: None },
            ],
        })),
        "changes.resync" => A::Changes(Ok(Changes::Resync { position })),
    ]);
    let why = || "why".to_owned();
    all_variants!(golden, "error", NameError {
        InvalidName, InvalidUri, InvalidTag, InvalidQuery, NameExists, UnknownName, RevisionMismatch, Superseded,
        NotAuthorised, LimitReached, Unavailable,
    }, [
        "invalid_name" => NameError::InvalidName(InvalidName(why())),
        "invalid_uri" => NameError::InvalidUri(InvalidUri(why())),
        "invalid_tag" => NameError::InvalidTag(InvalidTag(why())),
        "invalid_query" => NameError::InvalidQuery(why()),
        "name_exists" => NameError::NameExists(name()),
        "unknown_name" => NameError::UnknownName(why()),
        "revision_mismatch" => NameError::RevisionMismatch { actual: Some(Revision(300)) },
        "revision_mismatch.none" => NameError::RevisionMismatch { actual: None },
        "superseded" => NameError::Superseded { by: Incarnation(8) },
        "not_authorised" => NameError::NotAuthorised(why()),
        "limit_reached" => NameError::LimitReached { what: why(), limit: 300 },
        "unavailable" => NameError::Unavailable(why()),
    ]);
    all_variants!(golden, "claim_error", ClaimError { Moved, Held, NoMajority, NotAuthorised, Unavailable }, [
        "moved" => ClaimError::Moved(view()),
        "held" => ClaimError::Held { retry_after: Duration::from_millis(250) },
        "no_majority" => ClaimError::NoMajority { votes: 1, needed: 2 },
        "not_authorised" => ClaimError::NotAuthorised(why()),
        "unavailable" => ClaimError::Unavailable(why()),
    ]);
    golden.check("nameserver.txt");
}

#[test]
fn tracker_service_messages_have_golden_bytes() {
    use {TrackerServiceRequest as Q, TrackerServiceResponse as A};
    let mut golden = Golden::default();
    let (epoch, incarnation) = (Epoch(4), Incarnation(7));
    let mut digest = ShareDigest::default();
    digest.add(&meta());
    let beat = Heartbeat { to: Addressee::Tracker, epoch, incarnation, seq: 300, digest, endpoint: endpoint() };
    let to_standby = Heartbeat { to: Addressee::Standby, ..beat.clone() };
    let delta = Announcement {
        to: Addressee::Tracker,
        epoch,
        incarnation,
        seq: 300,
        kind: AnnouncementKind::Delta,
        upserts: vec![WireFile::from(meta())],
        removals: vec!["b.txt".to_owned()],
    };
    let snapshot = Announcement { kind: AnnouncementKind::Snapshot { page: 1, last: true }, ..delta.clone() };
    let after = || ("a.txt".to_owned(), ContentHash([0xab; 32]));
    all_variants!(golden, "request", TrackerServiceRequest { Heartbeat, Announce, WhoHas, ListAll, Leave }, [
        "heartbeat" => Q::Heartbeat { beat },
        "heartbeat.standby" => Q::Heartbeat { beat: to_standby },
        "announce.delta" => Q::Announce { announcement: delta },
        "announce.snapshot" => Q::Announce { announcement: snapshot },
        "who_has" => Q::WhoHas { query: WhoHas { epoch, name: "a.txt".to_owned(), version: Some(prefix()) } },
        "list_all" => Q::ListAll { query: ListAll { epoch, prefix: "a".to_owned(), after: Some(after()) } },
        "leave" => Q::Leave { epoch, incarnation },
    ]);
    let version = Version { file: meta(), owners: vec![Owner { peer: peer_id(), endpoint: endpoint() }] };
    let (ms, standbys) = (Duration::from_millis, vec![StandbyContact { peer: peer_id(), endpoint: endpoint() }]);
    let files = vec![IndexedFile { file: meta(), owners: vec![peer_id()] }];
    all_variants!(golden, "response", TrackerServiceResponse { Heartbeat, Announce, WhoHas, ListAll, Leave }, [
        "heartbeat" => A::Heartbeat(Ok(HeartbeatAck { epoch, known_seq: Some(299), next_beat: ms(100), standbys })),
        "heartbeat.unknown" => A::Heartbeat(Ok(HeartbeatAck {
            epoch,
            known_seq: None,
            next_beat: ms(1000),
            standbys: vec![],
        })),
        "announce" => A::Announce(Ok(())),
        "announce.error" => A::Announce(Err(TrackerError::SnapshotNeeded)),
        "who_has" => A::WhoHas(Ok(vec![version])),
        "list_all" => A::ListAll(Ok(IndexPage { epoch, files, next: Some(after()) })),
        "leave" => A::Leave(Ok(())),
    ]);
    let why = || "why".to_owned();
    all_variants!(golden, "error", TrackerError {
        NotTracker, StaleEpoch, SnapshotNeeded, InvalidFileName, Superseded, Settling, LimitReached, Unavailable,
        Later,
    }, [
        "not_tracker" => TrackerError::NotTracker(view()),
        "stale_epoch" => TrackerError::StaleEpoch(view()),
        "snapshot_needed" => TrackerError::SnapshotNeeded,
        "invalid_file_name" => TrackerError::InvalidFileName(InvalidFileName { name: why(), reason: why() }),
        "superseded" => TrackerError::Superseded,
        "settling" => TrackerError::Settling,
        "limit_reached" => TrackerError::LimitReached { what: why(), limit: 300 },
        "unavailable" => TrackerError::Unavailable(why()),
        "later" => TrackerError::Later { wait: ms(300) },
    ]);
    golden.check("tracker.txt");
}

#[test]
fn peer_service_messages_have_golden_bytes() {
    use {PeerServiceRequest as Q, PeerServiceResponse as A};
    let mut golden = Golden::default();
    let request =
        VoteRequest { epoch: Epoch(5), expected_epoch: Epoch(4), force: true, pre_vote: false, provisional: true };
    all_variants!(golden, "request", PeerServiceRequest {
        Info, List, Have, RequestVote, SeatNotice, UploadReport, Directories, Receiving,
    }, [
        "info" => Q::Info {},
        "list" => Q::List { after: Some("a.txt".parse().unwrap()) },
        "list.first" => Q::List { after: None },
        "have" => Q::Have { name: "a.txt".to_owned(), version: Some(prefix()) },
        "request_vote" => Q::RequestVote { request },
        "seat_notice.taken" => Q::SeatNotice { notice: SeatNotice::Taken(seat()) },
        "seat_notice.vacated" => Q::SeatNotice { notice: SeatNotice::Vacated(Epoch(4)) },
        "upload_report" => Q::UploadReport { hash: ContentHash([0xab; 32]) },
        "receiving" => Q::Receiving { prefix: "docs/".to_owned() },
        "directories" => Q::Directories { names: vec!["docs".to_owned(), "docs/deep".to_owned()] },
    ]);
    let info = PeerInfo {
        peer: peer_id(),
        version: "0.1.0".to_owned(),
        incarnation: Incarnation(7),
        endpoint: endpoint(),
        seat: view(),
        files: 1,
        bytes: 3,
    };
    let reply =
        VoteReply { epoch: Epoch(5), granted: true, seat: view(), voted_epoch: Epoch(5), electors: vec![peer_id()] };
    let time = Duration::from_millis;
    let report = UploadReport {
        uploads: 2,
        bytes: 70_000,
        served: time(1500),
        network_wait: time(300),
        throttle_wait: time(1000),
        slot_wait: time(20),
        limit_up: Some(300_000),
        slots: 8,
        path: PathReport {
            rtt: time(30),
            window_bytes: 14_000,
            sent_packets: 300,
            lost_packets: 2,
            congestion_events: 1,
            datagram_bytes: 1452,
        },
        machine: Some(MachineReport { idle_permille: 900, own_permille: 50 }),
    };
    let directory = DirectoryMeta { mtime_micros: 1_700_000_000_000_000, mode: 0o755 };
    all_variants!(golden, "response", PeerServiceResponse {
        Info, List, Have, RequestVote, SeatNotice, UploadReport, Directories, Receiving,
    }, [
        "info" => A::Info(info),
        "list" => A::List(FilePage { files: vec![meta()], next: Some("docs/a.txt".parse().unwrap()) }),
        "have" => A::Have(Some(meta())),
        "have.not" => A::Have(None),
        "request_vote" => A::RequestVote(reply),
        "seat_notice" => A::SeatNotice(view()),
        "upload_report" => A::UploadReport(Some(report)),
        "upload_report.not" => A::UploadReport(None),
        "receiving" => A::Receiving(vec![meta()]),
        "directories" => A::Directories(vec![Some(directory), None]),
    ]);
    golden.check("peer.txt");
}

#[test]
fn enrolment_service_messages_have_golden_bytes() {
    use {EnrolServiceRequest as Q, EnrolServiceResponse as A};
    let mut golden = Golden::default();
    let request = |role| EnrolRequest { token_id: [1; 16], proof: [2; 32], role, csr: vec![0x30, 0x00] };
    all_variants!(golden, "request", EnrolServiceRequest { Enrol }, [
        "enrol.peer" => Q::Enrol { request: request(Role::Peer(peer_id())) },
        "enrol.nameserver" => Q::Enrol { request: request(Role::Nameserver) },
        "enrol.admin" => Q::Enrol { request: request(Role::Admin) },
    ]);
    let enrolled = Enrolled { certificate: vec![1, 2], authority: vec![3], nameservers: vec![endpoint()] };
    all_variants!(golden, "response", EnrolServiceResponse { Enrol }, [
        "enrol" => A::Enrol(Ok(enrolled)),
        "enrol.error" => A::Enrol(Err(EnrolError::InvalidToken)),
    ]);
    let why = || "why".to_owned();
    all_variants!(golden, "error", EnrolError {
        InvalidToken, OtherPeer, AlreadyEnrolled, InvalidRequest, RoleNotAllowed, Unavailable,
    }, [
        "invalid_token" => EnrolError::InvalidToken,
        "other_peer" => EnrolError::OtherPeer,
        "already_enrolled" => EnrolError::AlreadyEnrolled(Role::Peer(peer_id())),
        "invalid_request" => EnrolError::InvalidRequest(why()),
        "role_not_allowed" => EnrolError::RoleNotAllowed(Role::Admin),
        "unavailable" => EnrolError::Unavailable(why()),
    ]);
    golden.check("enrol.txt");
}

/// Adds a message with its length prefix after checking that it round-trips.
fn header<T>(golden: &mut Golden, name: &str, value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut bytes = Vec::new();
    runtime.block_on(write_header(&mut bytes, value)).unwrap();
    let mut rest = bytes.as_slice();
    assert_eq!(&runtime.block_on(read_header::<T>(&mut rest)).unwrap(), value);
    assert!(rest.is_empty());
    golden.bytes(name, &bytes);
}

#[test]
fn bulk_stream_messages_have_golden_bytes() {
    let mut golden = Golden::default();
    let hash = ContentHash([0xab; 32]);
    header(&mut golden, "header.request.all", &BulkRequest { hash, groups: vec![] });
    header(&mut golden, "header.request.ranges", &BulkRequest { hash, groups: vec![(0, 300), (400, 401)] });
    header::<Result<BulkAccepted, BulkRefusal>>(&mut golden, "header.accepted", &Ok(BulkAccepted { size: 70_000 }));
    header::<Result<BulkAccepted, BulkRefusal>>(&mut golden, "header.refused", &Err(BulkRefusal::Busy));
    all_variants!(golden, "refusal", BulkRefusal { NotHere, Busy, BadRanges, Unreadable, Hashing }, [
        "not_here" => BulkRefusal::NotHere,
        "busy" => BulkRefusal::Busy,
        "bad_ranges" => BulkRefusal::BadRanges,
        "unreadable" => BulkRefusal::Unreadable,
        "hashing" => BulkRefusal::Hashing,
    ]);
    for abort in [BulkAbort::Changed, BulkAbort::Stopped, BulkAbort::Enough, BulkAbort::Wrong] {
        assert_eq!(BulkAbort::from_varint(abort.to_varint()), Some(abort));
        golden.bytes(&format!("abort.{abort:?}").to_lowercase(), &abort.to_varint().into_inner().to_be_bytes());
    }
    golden.check("bulk.txt");
}

#[test]
fn pack_stream_messages_have_golden_bytes() {
    let mut golden = Golden::default();
    let request = PackRequest::new(vec![(ContentHash([0xab; 32]), 0), (ContentHash([0xcd; 32]), 70_000)]).unwrap();
    header(&mut golden, "header.request", &request);
    header::<Result<PackAccepted, BulkRefusal>>(&mut golden, "header.accepted", &Ok(PackAccepted));
    header::<Result<PackAccepted, BulkRefusal>>(&mut golden, "header.refused", &Err(BulkRefusal::Busy));
    golden.bytes("item.follows", &[ITEM_FOLLOWS]);
    for refusal in [ItemRefusal::NotHere, ItemRefusal::Unreadable, ItemRefusal::Changed] {
        assert_eq!(ItemRefusal::from_byte(refusal.to_byte()), Some(refusal));
        golden.bytes(&format!("item.{refusal:?}").to_lowercase(), &[refusal.to_byte()]);
    }
    let known = (0..=u8::MAX).filter(|byte| ItemRefusal::from_byte(*byte).is_some()).count();
    assert_eq!(known, 3, "a refusal has no golden line");
    golden.check("packs.txt");
}

#[test]
fn stream_kinds_close_codes_and_envelopes_have_golden_bytes() {
    let mut golden = Golden::default();
    golden.bytes("alpn.member", ALPN);
    golden.bytes("alpn.applicant", ENROL_ALPN);
    for kind in [
        StreamKind::Names,
        StreamKind::Tracker,
        StreamKind::Peer,
        StreamKind::Enrol,
        StreamKind::Bulk,
        StreamKind::Pack,
        StreamKind::Swarm,
    ] {
        assert_eq!(StreamKind::from_byte(kind.to_byte()), Some(kind));
        golden.bytes(&format!("stream.{kind:?}").to_lowercase(), &[kind.to_byte()]);
    }
    let known = (0..=u8::MAX).filter(|byte| StreamKind::from_byte(*byte).is_some()).count();
    assert_eq!(known, 7, "a kind of stream has no golden line");
    for code in
        [CloseCode::Done, CloseCode::NotAuthorised, CloseCode::Overloaded, CloseCode::ShuttingDown, CloseCode::Protocol]
    {
        assert_eq!(CloseCode::from_varint(code.to_varint()), code);
        golden.bytes(&format!("close.{code:?}").to_lowercase(), &code.to_varint().into_inner().to_be_bytes());
    }

    // tarpc's envelope. tarpc sends a deadline as the remaining time, which is zero for a past deadline.
    let trace_context = trace::Context {
        trace_id: 0x0102_u128.into(),
        span_id: 0x0304_u64.into(),
        sampling_decision: trace::SamplingDecision::Unsampled,
    };
    let mut context = context::current();
    context.deadline -= Duration::from_secs(11);
    context.trace_context = trace_context;
    let message = PeerServiceRequest::Info {};
    envelope(&mut golden, "call", &ClientMessage::Request(Request { context, id: 300, message }));
    envelope(&mut golden, "cancel", &ClientMessage::<PeerServiceRequest>::Cancel { trace_context, request_id: 300 });
    let message = Ok(PeerServiceResponse::Have(None));
    golden.message("answer", &Response { request_id: 300, message });
    // tarpc writes the error kind as a signed integer and reads an unsigned one, so only `Other` round-trips in
    // postcard.
    let error = ServerError::new(std::io::ErrorKind::Other, "why".to_owned());
    golden.message("answer.error", &Response::<PeerServiceResponse> { request_id: 300, message: Err(error) });
    golden.check("envelope.txt");
}

/// Adds an envelope like [`Golden::message`], without comparing the decoded value, which depends on the clock.
fn envelope<T: Serialize + DeserializeOwned>(golden: &mut Golden, name: &str, value: &T) {
    let bytes = postcard::to_stdvec(value).unwrap();
    let back: T = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(postcard::to_stdvec(&back).unwrap(), bytes, "{name}");
    golden.bytes(name, &bytes);
}

#[test]
fn join_token_has_golden_bytes() {
    let mut golden = Golden::default();
    // An independent encoder, written from the description of the format, checks the program's encoder.
    let secret: [u8; 20] = std::array::from_fn(|at| at as u8);
    let addresses = ["10.0.0.1:9090", "[fe80::1]:9090"];
    let mut bytes = postcard::to_stdvec(&([0xcd_u8; 32], secret, addresses.to_vec())).unwrap();
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..4]);
    let text = format!("brasa1-{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase());

    let token: JoinToken = text.parse().unwrap();
    assert_eq!(token.to_string(), text);
    assert_eq!((token.authority.0, token.addresses.as_slice()), ([0xcd; 32], &addresses.map(str::to_owned)[..]));
    golden.bytes("token.text", text.as_bytes());
    golden.bytes("token.id", &token.id());
    golden.bytes("token.proof", &token.proof_key().proof(&[1; 32], b"request"));
    golden.message("token.proof_key", &token.proof_key());
    golden.check("token.txt");
}
