//! Every bound of the system, by name, with its unit and the reason for its value.
//!
//! Over a bound comes a typed, retryable error: never memory growth, never a hang.

use std::time::Duration;

// --- names and messages -------------------------------------------------------------------------

/// Longest registered name, bytes. Keeps a page of 1000 names well within a frame.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest endpoint URI, bytes.
pub const MAX_URI_BYTES: usize = 2048;
/// Most tags a name carries.
pub const MAX_TAGS: usize = 64;
/// Longest tag, bytes.
pub const MAX_TAG_BYTES: usize = 128;
/// Longest name of a shared file, bytes: what Linux allows below a share (`PATH_MAX` 4096) with room to spare.
pub const MAX_FILE_NAME_BYTES: usize = 1024;
/// Longest part of a file's name, bytes: `NAME_MAX` of every common file system.
pub const MAX_FILE_NAME_PART_BYTES: usize = 255;
/// Largest RPC frame, bytes. What is larger is paged or streamed.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Largest header of a bulk stream, bytes: a request names one content and at most a few ranges.
pub const MAX_BULK_HEADER_BYTES: usize = 64 << 10;
/// Entries on a page of names.
pub const NAMES_PER_PAGE: usize = 1000;
/// Bytes of entries on a page of names: leaves a frame room for its envelope, so that entries with large
/// tags come fewer to a page.
pub const PAGE_BYTES: usize = MAX_FRAME_BYTES / 2;
/// Files on a page of a listing, and in one announcement: 500 names of 1 KiB still fit a frame.
pub const FILES_PER_PAGE: usize = 500;
/// Names looked at for one page: a filter that matches little must not keep the nameserver from renewing leases.
pub const NAMES_SCANNED_PER_PAGE: usize = 20_000;
/// Changes of names that the nameserver remembers for those who watch: who is further behind lists anew.
pub const MAX_CHANGES_REMEMBERED: usize = 10_000;
/// Longest wait for a change in one call: a watcher that is gone is not waited for much longer.
pub const MAX_WATCH_WAIT: Duration = Duration::from_secs(30);
/// Registrations that end in one step of the nameserver; more end in the next.
pub const EXPIRIES_PER_SWEEP: usize = 1000;
/// Names one identity may hold: far more than a peer needs, far fewer than would hurt.
pub const MAX_NAMES_PER_IDENTITY: usize = 10_000;
/// Names in all: bounds the nameserver's memory at some hundreds of MiB.
pub const MAX_NAMES: usize = 1_000_000;
/// Longest regular expression, bytes.
pub const MAX_REGEX_BYTES: usize = 1024;
/// Memory of one compiled regular expression, bytes: a short pattern can compile into a large program.
pub const MAX_REGEX_PROGRAM_BYTES: usize = 1 << 20;
/// Join tokens outstanding at a time.
pub const MAX_TOKENS: usize = 10_000;
/// Uses of one join token.
pub const MAX_TOKEN_USES: u32 = 10_000;
/// Peers ever enrolled: ten times as many as one core keeps track of at a time.
pub const MAX_ENROLMENTS: usize = 100_000;

// --- leases and the seat ------------------------------------------------------------------------

/// Lease of a peer's name unless it asks for another.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(10);
/// Shortest lease that is granted: shorter ones would mean a renewal storm.
pub const MIN_LEASE: Duration = Duration::from_secs(1);
/// Longest lease that is granted; what shall stay longer is permanent, and an admin's.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Renewal of a lease starts at this part of its time (1/3: two renewals may be lost).
pub const LEASE_RENEWALS_PER_TERM: u32 = 3;
/// Lease of the tracker seat.
pub const SEAT_LEASE: Duration = Duration::from_millis(750);
/// How often the tracker renews its seat.
pub const SEAT_RENEWAL: Duration = Duration::from_millis(200);
/// How far above the highest epoch one claim, vote or notice may go: far more elections than happen while a nameserver
/// is away, far too few for a liar to ever use up the epochs.
pub const MAX_EPOCH_STEP: u64 = 1 << 16;
/// How long the nameserver must not have heard the incumbent before a majority may replace it.
pub const SEAT_SILENCE: Duration = Duration::from_millis(400);

// --- election -----------------------------------------------------------------------------------

/// How often a peer tells the tracker that it is there.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// How often an elector knocks at the port of the tracker that it follows: a killed process says nothing, but its machine
/// says that nobody listens there. One byte each, and with five peers the first of them knows after 10 ms on average.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// How long after a knock that was refused the next one follows: only two refusals in a row mean something. What is in
/// flight has arrived by then, and an answer to a heartbeat between them says more.
pub const PROBE_RETRY: Duration = Duration::from_millis(5);
/// How long the nameserver waits for each refusal: a round trip to another continent is not worth waiting for, since
/// silence decides then.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a voter that hears the tracker looks for itself, knocking, before it says no to a candidate that does not:
/// two knocks and a local network's round trips, and far less than a candidate waits for votes.
pub const VOTE_HOLD: Duration = Duration::from_millis(50);
/// Silence of the tracker after which a peer suspects it.
pub const SUSPICION: Duration = Duration::from_millis(400);
/// How late a process may run before it mistrusts its own sense of silence.
pub const OVERSLEPT: Duration = Duration::from_millis(100);
/// How often a peer that is no elector tells the tracker that it is there: who does not elect need not notice first.
pub const REDUCED_HEARTBEAT: Duration = Duration::from_secs(1);
/// Peers that elect, whatever their number: an election costs the same in a network of ten and of ten thousand.
pub const MAX_ELECTORS: usize = 9;
/// Epochs of provisional trackers are multiples of this, those of registered ones are none: the two ways to an epoch
/// cannot lead to the same one. Small against [`MAX_EPOCH_STEP`]: 512 provisional trackers in one absence of the
/// nameserver are credible.
pub const PROVISIONAL_EPOCHS: u64 = 64;
/// How long a candidate waits for votes.
pub const VOTE_WAIT: Duration = Duration::from_millis(150);
/// Longest random wait before an election is tried (again).
pub const ELECTION_BACKOFF: Duration = Duration::from_millis(150);
/// How long a claimant waits for the nameserver, which syncs its disk before it answers.
pub const CLAIM_WAIT: Duration = Duration::from_millis(500);
/// How much later than a better-placed peer (by rendezvous hash) the next one stands for election: some
/// round trips of a local network, so that one candidate is usually done before the next begins.
pub const CANDIDATE_STAGGER: Duration = Duration::from_millis(20);
/// Places in the candidates' order that are told apart; those behind share the last one.
pub const CANDIDATE_PLACES: u32 = 4;
/// How often a peer without a tracker asks the nameserver who holds the seat.
pub const SEAT_POLL: Duration = Duration::from_millis(200);
/// How often a peer asks the nameserver for the registered peers ...
pub const PEERS_POLL: Duration = Duration::from_secs(2);
/// ... and how much longer it waits for each peer registered, so that a large network does not drown in lists.
pub const PEERS_POLL_PER_PEER: Duration = Duration::from_millis(10);
/// How often it asks while it watches the names, which tells it at once: in case that the watch is wrong.
pub const WATCHED_PEERS_POLL: Duration = Duration::from_secs(30);
/// Elections that can be asked for while one is under way; all get its result.
pub const MAX_ELECTION_WAITERS: usize = 64;
/// A tracker with neither its lease nor a majority's heartbeats for this long steps down.
pub const DRAIN_AFTER: Duration = Duration::from_millis(600);
/// Silence of a peer after which the tracker forgets its files; they come back with its next heartbeat.
pub const PEER_SILENCE: Duration = Duration::from_millis(1500);
/// How long a new tracker lets `listAll` wait for the known peers to announce themselves.
pub const INDEX_SETTLE: Duration = Duration::from_millis(1000);
/// Voters and members that one core keeps track of.
pub const MAX_PEERS: usize = 10_000;
/// Peers that follow what is announced as the tracker does, so that one of them can take its place with the index at hand.
/// Each costs every peer another stream of announcements.
pub const MAX_STANDBYS: usize = 2;
/// How much longer than the standbys the other peers wait before they stand for election: about what the peers' suspicions
/// of one dead tracker lie apart.
pub const STANDBY_HEAD_START: Duration = Duration::from_millis(60);
/// Snapshots of several pages that a tracker takes at a time.
pub const MAX_SNAPSHOTS: usize = 16;
/// What a file of a snapshot costs the tracker (`peer/benches/index` measures less) ...
pub const SNAPSHOT_FILE_COST: Duration = Duration::from_micros(8);
/// ... and a page besides its files: who comes with a small one is not let in for nothing.
pub const SNAPSHOT_PAGE_COST: Duration = Duration::from_micros(50);
/// Work on snapshots that is let in ahead of its time: half a heartbeat's interval, so that heartbeats do not wait long.
pub const SNAPSHOT_BURST: Duration = Duration::from_millis(50);
/// When to ask again for a snapshot of several pages while [`MAX_SNAPSHOTS`] are under way.
pub const SNAPSHOT_RETRY: Duration = Duration::from_millis(250);
/// Longest wait for a snapshot's turn that is believed: what [`MAX_PEERS`] first pages take.
pub const MAX_SNAPSHOT_WAIT: Duration = Duration::from_secs(30);
/// Versions in a tracker's index.
pub const MAX_INDEX_ENTRIES: usize = 4_000_000;
/// Files in one peer's share.
pub const MAX_FILES_PER_PEER: usize = 1_000_000;

/// Versions of one name in an answer to `who_has`: those with most owners come first.
pub const MAX_VERSIONS_PER_ANSWER: usize = 32;
/// Files in the announcements that a peer remembers, so that a tracker that missed some need not be sent everything.
pub const MAX_LOGGED_FILES: usize = 10_000;
/// How long a peer waits before it announces again what the tracker refused.
pub const ANNOUNCE_RETRY: Duration = Duration::from_secs(1);

// --- calls and connections ----------------------------------------------------------------------

/// Deadline of an ordinary call. (tarpc's own default is 10 s.)
pub const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// Longest deadline of a call that is taken from a caller; a later one is brought down to it. (Timers cannot hold
/// whatever 64 bits of seconds can say.)
pub const MAX_CALL_DEADLINE: Duration = Duration::from_secs(600);
/// Deadline of a heartbeat or vote: an answer after this is as good as none.
pub const HEARTBEAT_DEADLINE: Duration = Duration::from_millis(300);
/// Deadline of a call about the seat: within the seat's lease there is time for one more.
pub const SEAT_CALL_DEADLINE: Duration = Duration::from_millis(500);
/// How long a command waits for a tracker that can answer: a failover, with room to spare.
pub const TRACKER_WAIT: Duration = Duration::from_secs(5);
/// How long a download waits for a tracker before it asks the known peers themselves.
pub const TRACKER_WAIT_BEFORE_FAN_OUT: Duration = Duration::from_millis(1500);
/// Files of one download that are fetched at a time.
pub const FILES_AT_A_TIME: usize = 8;
/// How long a handshake may take.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// Addresses of one host name that are dialled in turn.
pub const MAX_DIAL_ADDRESSES: usize = 4;
/// How long a stream that was opened may take to say what it is for.
pub const STREAM_HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a graceful close waits for the other side.
pub const CLOSE_DEADLINE: Duration = Duration::from_millis(250);
/// Calls in flight on one connection; more wait in the stream's flow control.
pub const MAX_CALLS_IN_FLIGHT: usize = 256;
/// Bidirectional streams one connection may have open.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Connections one process accepts at a time.
pub const MAX_CONNECTIONS: usize = 4096;
/// Connections one process accepts at a time from addresses that have not authenticated yet.
pub const MAX_HANDSHAKES: usize = 256;
/// Handshakes from one address at a time once there are [`MAX_HANDSHAKES`] in all, so that one host does not hold
/// the door against the others.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// Connections one identity may hold to one process.
pub const MAX_CONNECTIONS_PER_IDENTITY: usize = 32;
/// Streams with calls that one connection may have open: clients need one a service. Each holds up to a frame
/// that is not complete yet.
pub const MAX_CALL_STREAMS: usize = 16;
/// Connections of newcomers at a time: whoever reaches the port can be one.
pub const MAX_APPLICANTS: usize = 64;
/// Streams that a newcomer may have open; it needs one.
pub const MAX_APPLICANT_STREAMS: usize = 4;
/// How long a newcomer may stay: one call's time, and a person waits for it.
pub const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is given up.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an otherwise silent connection says that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Commands waiting for the task that owns a core.
pub const MAX_QUEUED_EVENTS: usize = 4096;
/// Writes of one identity that wait at the nameserver: two full connections' worth, an eighth of the queue, so that
/// nobody fills it alone.
pub const MAX_WRITES_PER_IDENTITY: usize = MAX_QUEUED_EVENTS / 8;
/// Commands the nameserver answers after one durable write: the cost of the write is shared, the wait stays short.
pub const COMMANDS_PER_COMMIT: usize = 128;

// --- moving bytes -------------------------------------------------------------------------------

/// log2 of the chunks of 1 KiB in a verification group.
pub const GROUP_CHUNK_LOG: u8 = 4;
/// A verification group, bytes.
pub const GROUP_BYTES: u64 = 1024 << GROUP_CHUNK_LOG;
/// Receive window of a bulk stream, bytes: 12 MiB fill a 100 ms path at 1 Gbit/s.
pub const STREAM_WINDOW_BYTES: u32 = 12 << 20;
/// Receive window of a connection, bytes: what a slow receiver holds of one owner in memory. A little more than a
/// stream's, so that news and the next request come while a stream waits to be read.
pub const CONNECTION_WINDOW_BYTES: u32 = 14 << 20;
/// Receive window of an accepted connection until its other end is known to be a member, bytes: enough for a
/// signing request, too little to fill memory with.
pub const APPLICANT_WINDOW_BYTES: u32 = 64 << 10;
/// Bytes a connection keeps for retransmission.
pub const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// UDP socket buffers asked of the kernel, bytes; it may clamp them, which is reported.
pub const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// Largest datagram, bytes of UDP payload, where the path takes it (loopback, jumbo frames): two of them are the most that
/// fits one call of the kernel. 1 GiB over loopback takes a tenth less time than with 6500. An endpoint's receive buffer
/// has address space for 2048 of them (66 MB), of which it touches 2 MB.
pub const MAX_DATAGRAM_BYTES: u16 = 32_000;
/// How long datagrams stay small after several losses in turn of large ones only. A receiver that does not come to read loses them like
/// a path that does not take them; with a minute, quinn's default, every transfer of that minute costs twice the time.
pub const MTU_SEARCH_PAUSE: Duration = Duration::from_secs(1);
/// Datagrams that the other side may leave unacknowledged for a moment (its acknowledgement delay, 25 ms).
pub const DATAGRAMS_PER_ACK: u32 = 9;
/// How often an asker whose request waits for its turn is told that it does: well within `PROVIDER_SILENCE`.
pub const QUEUE_KEEPALIVE: Duration = Duration::from_millis(500);
/// Smallest rate that `--limit-up` and `--limit-down` take, bytes a second: with less, a peer that shares its rate among
/// `MAX_UPLOADS` would look dead to each.
pub const MIN_RATE: u64 = 16 << 10;
/// A capped transfer moves what its rate brings in this time at once.
pub const PACE: Duration = Duration::from_millis(20);
/// Owners tried for one file before a download fails.
pub const MAX_OWNERS_TRIED: usize = 16;
/// Known peers that are asked directly when there is no tracker.
pub const MAX_FAN_OUT: usize = 32;
/// Full rescan of the share, besides the file system's own notices (network file systems send none).
pub const RESCAN: Duration = Duration::from_secs(30);
/// Quiet time after a notice before the share is looked at, so that a burst is one look.
pub const SCAN_DEBOUNCE: Duration = Duration::from_millis(100);
/// Open subdirectories deep a share is searched.
pub const MAX_SHARE_DEPTH: usize = 64;

// --- the swarm ----------------------------------------------------------------------------------

/// Smallest content, bytes, whose receivers tell each other what they have: for less it is over before it helps.
pub const MIN_SWARM_BYTES: u64 = 1 << 20;
/// News of a swarm are gathered for so long, in a swarm of few ...
pub const SWARM_UPDATE_INTERVAL: Duration = Duration::from_millis(50);
/// ... of up to so many members; with more, for longer in proportion.
pub const SWARM_UPDATE_MEMBERS: usize = 16;
/// Ranges of groups in one message of news.
pub const RANGES_PER_UPDATE: usize = 512;
/// Members in one message of news.
pub const MEMBERS_PER_UPDATE: usize = 64;
/// Members of one swarm that one peer talks to.
pub const MAX_SWARM_MEMBERS: usize = 256;
/// How long a receiver leaves it to another one to dial before it dials itself.
pub const SWARM_DIAL_LAST: Duration = Duration::from_millis(500);
/// How long a download waits for the other receivers when nobody has what it misses, whatever they promise meanwhile.
pub const SWARM_PATIENCE: Duration = Duration::from_secs(10);
/// How often one download asks the known peers who receives the content: each time up to [`MAX_FAN_OUT`] of them are called.
pub const MAX_SWARM_FAN_OUTS: u32 = 4;
/// How long the known peers may take to say whether they receive a file that nobody shares: somebody waits to hear that it is nowhere.
pub const RECEIVERS_DEADLINE: Duration = Duration::from_secs(1);
/// Requests under way to one owner: one is served while the next one waits, so that the pipe never drains ...
pub const MIN_REQUESTS_PER_PROVIDER: usize = 2;

// --- packs of small files -----------------------------------------------------------------------

/// Largest file that travels in a pack, bytes: checked as a whole, so it is held in memory as a whole.
pub const MAX_PACKED_FILE_BYTES: u64 = 256 << 10;
/// Files of one download from which on they travel in packs; a single one has nothing to share the cost with.
pub const MIN_PACKED_FILES: usize = 2;
/// Contents in one pack: a request of 34 bytes a content stays far within [`MAX_BULK_HEADER_BYTES`].
pub const MAX_PACK_CONTENTS: usize = 512;
/// Bytes of contents in one pack.
pub const MAX_PACK_BYTES: u64 = 8 << 20;
/// Owners that one content is asked of: with a million files it bounds what a download remembers.
pub const MAX_OWNERS_PER_PACKED: usize = MAX_OWNERS_TRIED;
/// Files that are made durable together: a sync costs about the same for one and for a thousand ...
pub const COMMIT_FILES: usize = 2048;
/// ... and their bytes, ...
pub const COMMIT_BYTES: u64 = 64 << 20;
/// ... and how long the first of them waits for more.
pub const COMMIT_WAIT: Duration = Duration::from_millis(500);
/// Files of small contents looked at by one blocking task: a thousand are some milliseconds, in which it can be cancelled.
pub const LOOKED_AT_A_TIME: usize = 1024;

// --- why a transfer is slow ---------------------------------------------------------------------

/// Peers of whose uploads an owner remembers where the time went.
pub const MAX_REPORTED_PEERS: usize = 256;
/// Contents of which it remembers that, for each of them.
pub const MAX_REPORTS_PER_PEER: usize = 16;
/// Uploads of one content to one peer that are this far apart belong to different downloads: what was remembered of the
/// first is forgotten.
pub const REPORT_PAUSE: Duration = Duration::from_secs(5);
/// Contents, the largest ones, of which a receiver asks an owner for its report.
pub const REPORTS_ASKED: usize = 4;
/// How long an owner may take to report: the download is over, and somebody waits for its result.
pub const REPORT_DEADLINE: Duration = Duration::from_millis(500);
/// How often the machine's counters are read at most: with many processors that is up to a millisecond's work.
pub const MACHINE_SAMPLE: Duration = Duration::from_millis(200);
/// Over how long a rate that is shown is measured: long enough to read, short enough to show what happens now ...
pub const SHOWN_RATE_WINDOW: Duration = Duration::from_secs(4);
/// ... in steps of this.
pub const SHOWN_RATE_STEP: Duration = Duration::from_millis(250);

// --- the share and what is kept of it -----------------------------------------------------------

/// A file changed this recently before it was hashed may change again within one tick of its file system's clock
/// without showing it (FAT counts in 2 s), so its hash is not trusted for good.
pub const RACY_WINDOW: Duration = Duration::from_secs(2);
/// Quiet time after which a file that changed while it was hashed is hashed again.
pub const WRITER_QUIET: Duration = Duration::from_secs(1);
/// Bytes read and hashed at a time.
pub const HASH_BLOCK_BYTES: u64 = 1 << 20;
/// Part of a large file that one thread hashes, bytes: its 4095 hash pairs are one write of 256 KiB.
pub const HASH_PART_BYTES: u64 = 64 << 20;
/// Memory of the hash cache's pages, bytes.
pub const HASH_CACHE_BYTES: usize = 4 << 20;
/// Age an outboard that no file refers to must have before it is deleted: it may belong to a file on its way in.
pub const OUTBOARD_GRACE: Duration = Duration::from_secs(600);
/// Encoded bytes that go between the thread that hashes and the task that owns the stream at a time.
pub const BULK_BATCH_BYTES: usize = 256 << 10;
/// Chunks that are read from a stream at a time; a chunk is what one datagram carried, so these are up to 250 KB.
pub const CHUNKS_PER_READ: usize = 64;
/// Such batches on their way in one transfer: with the next constant (three times, where a thread of its own writes) what a transfer holds in
/// memory, 4 to 8 MiB.
pub const BULK_BATCHES: usize = 8;
/// Verified bytes that are written to disk at a time: with 1 MiB, waiting for the disk between two took a tenth of all time.
pub const DISK_RUN_BYTES: usize = 2 << 20;
/// Files from this size on are written past the page cache when they come in fast: smaller ones are likely to be used at once.
pub const DIRECT_MIN_FILE_BYTES: u64 = 64 << 20;
/// Shortest run that is written past the page cache, bytes: what comes in more slowly is passed on from there.
pub const DIRECT_MIN_RUN_BYTES: usize = 512 << 10;
/// Where such runs begin, in memory and in the file: a multiple of the blocks of all usual disks, bytes.
pub const DIRECT_ALIGNMENT: usize = 4096;
/// A disk that takes more than [`DIRECT_TRIAL_TIME`] for this many bytes is given the next [`DIRECT_REST_BYTES`] through the page cache.
pub const DIRECT_TRIAL_BYTES: u64 = 128 << 20;
/// See [`DIRECT_TRIAL_BYTES`]; with these 128 MiB it is 160 MiB a second: turning disks are slower when they write here and there, others faster.
pub const DIRECT_TRIAL_TIME: Duration = Duration::from_millis(800);
/// See [`DIRECT_TRIAL_BYTES`].
pub const DIRECT_REST_BYTES: u64 = 1 << 30;
/// What is hashed of a content at most because a receiver says that it got wrong bytes: as much as one is asked for at a time.
/// (Only files of more than 2 TiB have longer pieces.)
pub const MAX_LOOK_BYTES: u64 = 32 << 20;
/// Contents that are looked at for that reason at a time: some tens of milliseconds of a thread each.
pub const MAX_LOOKS: usize = 4;
/// Time in which the receiver of an upload must take at least one byte. Long, because a receiver says that it has room again only when
/// an eighth of a window is free (quinn's rule): at [`MIN_RATE`] that takes 112 s, and 224 s when two requests share the rate. One
/// that is given up meanwhile has up to [`CONNECTION_WINDOW_BYTES`] sent again.
pub const UPLOAD_SILENCE: Duration = Duration::from_secs(240);
const _: () = assert!(
    UPLOAD_SILENCE.as_secs() * MIN_RATE >= CONNECTION_WINDOW_BYTES as u64 / 8 * MIN_REQUESTS_PER_PROVIDER as u64,
    "the slowest receiver is not given up before it can say that it has room"
);

// --- downloads that go on later -----------------------------------------------------------------

/// Files up to this many bytes are fetched again from the start: that costs less than keeping account of them.
pub const RESUME_MIN_BYTES: u64 = 1 << 20;
/// Received bytes after which they are synced, in the background: often enough that little is fetched again after a power
/// cut, seldom enough that disks write long runs.
pub const CHECKPOINT_BYTES: u64 = 32 << 20;
/// Time after which what was received is synced, however little it is.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
/// Received bytes of a file that are not known to be on the disk; with more, receiving waits for the disk. What a power
/// cut costs at most, besides what was not written at all.
pub const MAX_UNSYNCED_BYTES: u64 = 64 << 20;
/// Largest header of a resume file, bytes: two paths of 4 KiB with room to spare.
pub const MAX_RESUME_HEADER_BYTES: usize = 16 << 10;
/// Largest resume file, bytes: a file of 1 TiB whose pieces came in any order takes half of it. What it has no room for is
/// fetched again.
pub const MAX_RESUME_FILE_BYTES: usize = 4 << 20;
/// Length from which a resume file that is more than twice as long as it need be is written anew, bytes.
pub const RESUME_COMPACT_BYTES: usize = 256 << 10;
/// How much later than its last record a partial file may have changed without being checked again: a write that its
/// process did not live to record.
pub const RESUME_SLACK: Duration = Duration::from_secs(1);
/// Unfinished downloads that are listed; further ones can be continued all the same.
pub const MAX_UNFINISHED: usize = 1000;
/// Owners of a directory that a download asks for its times and modes ...
pub const DIRECTORY_OWNERS_ASKED: usize = 4;
/// ... and how long they may take together: they are asked while the files come, and the files are what somebody waits for.
pub const DIRECTORIES_DEADLINE: Duration = Duration::from_secs(2);
/// How long a download whose files are all there still waits for them.
pub const DIRECTORIES_GRACE: Duration = Duration::from_millis(500);
/// How long after its download was last begun a note of the directories that it makes is kept. Whoever repeats one later has the directories
/// that it made before with the modes that they were made with.
pub const NOTE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a download waits for an earlier one of the same content that was just stopped to let go of it.
pub const PARTIAL_WAIT: Duration = Duration::from_secs(1);
/// How often it looks.
pub const PARTIAL_POLL: Duration = Duration::from_millis(20);

// --- identity -----------------------------------------------------------------------------------

/// Life of a node's certificate.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a program of this machine waits for the token of a nameserver that is just starting.
pub const LOCAL_TOKEN_WAIT: Duration = Duration::from_secs(1);
/// How often it looks.
pub const LOCAL_TOKEN_POLL: Duration = Duration::from_millis(20);
/// Life of a join token unless another is asked for.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Longest life of a join token.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

// --- the command line ---------------------------------------------------------------------------

/// Longest line of commands, bytes: a person types less, a script writes a line a command.
pub const MAX_COMMAND_LINE_BYTES: usize = 64 << 10;
/// Largest frame on a peer's control socket, bytes: above what Linux lets a program have as arguments
/// (`ARG_MAX`, 2 MiB), JSON quoting included. Longer output goes in several frames.
pub const MAX_CONTROL_FRAME_BYTES: usize = 8 << 20;
/// How long a one-shot command waits for the running peer to take it.
pub const CONTROL_SILENCE: Duration = Duration::from_secs(5);
/// Output in one frame on a control socket, bytes.
pub const CONTROL_OUTPUT_BYTES: usize = 64 << 10;
/// Commands that one peer carries out for its control socket at a time; more wait to be accepted.
pub const MAX_CONTROL_CLIENTS: usize = 64;
/// How often progress is drawn or sent to who waits for it.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long a one-shot command waits for a peer of its id that is just starting or leaving.
pub const ONE_SHOT_WAIT: Duration = Duration::from_secs(5);
/// How often it looks.
pub const ONE_SHOT_POLL: Duration = Duration::from_millis(50);
/// Lines that the prompt remembers.
pub const MAX_HISTORY_LINES: usize = 1000;
/// File names kept for completion at the prompt.
pub const MAX_COMPLETIONS: usize = 10_000;
/// Largest file with a join token, bytes; a token is a few hundred.
pub const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;
/// Longest unknown word for which similar ones are looked for, characters.
pub const MAX_SUGGESTED_CHARS: usize = 32;
