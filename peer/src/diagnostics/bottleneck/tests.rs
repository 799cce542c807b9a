//! Diagnosis of constructed measurements.

use proptest::prelude::*;

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn peer(id: &str) -> PeerId {
    id.parse().unwrap()
}

/// Measurement of 10 s with one owner whose streams waited for nothing.
fn measured(time: SourceTime, report: Option<UploadReport>) -> Measured {
    let streaming = ms(10_000).saturating_sub(time.opening + time.queued);
    let streams = if time.streams.is_zero() { streaming } else { time.streams };
    let time = SourceTime { streaming, streams, requests: 4, ..time };
    let source = Source { bytes: 1 << 30, time, rtt: Some(ms(3)), report };
    Measured {
        elapsed: ms(10_000),
        active: ms(10_000),
        machine: Some(MachineReport { idle_permille: 600, own_permille: 300 }),
        sources: [(peer("owner"), source)].into(),
        ..Measured::default()
    }
}

/// Report of an owner that served for 10 s and waited for its limit and the network for these times in milliseconds.
fn report(throttle: u64, network: u64) -> UploadReport {
    UploadReport {
        uploads: 4,
        served: ms(10_000),
        throttle_wait: ms(throttle),
        network_wait: ms(network),
        limit_up: Some(2 << 20),
        slots: 8,
        path: PathReport { rtt: ms(30), window_bytes: 60_000, sent_packets: 10_000, ..PathReport::default() },
        machine: Some(MachineReport { idle_permille: 700, own_permille: 200 }),
        ..UploadReport::default()
    }
}

fn for_bytes(report: Option<UploadReport>) -> Measured {
    measured(SourceTime { bytes_wait: ms(9500), decoder_wait: ms(9500), ..SourceTime::default() }, report)
}

/// Returns the first finding and asserts that only it stands out.
fn first(measured: &Measured) -> Finding {
    let found = findings(measured);
    let first = found.first().unwrap_or_else(|| panic!("nothing was found of {measured:?}")).clone();
    assert!(first.stands_out(), "{found:?}");
    assert!(found[1..].iter().all(|other| !other.stands_out()), "{found:?}");
    first
}

#[test]
fn rate_limit_of_the_owner_is_found() {
    let found = first(&for_bytes(Some(report(9000, 500))));
    assert_eq!((found.cause, found.peers), (Cause::OwnerLimit, vec![peer("owner")]));
    assert_eq!(found.figure, Figure::Rate(Some(2 << 20)));
    assert!((0.85..0.86).contains(&found.share), "{}", found.share);
}

#[test]
fn disk_of_the_owner_is_found() {
    let found = first(&for_bytes(Some(report(0, 1000))));
    assert_eq!((found.cause, found.figure), (Cause::OwnerDisk, Figure::Time(ms(9000))));
}

#[test]
fn slots_of_the_owner_are_found() {
    let found = first(&measured(SourceTime { queued: ms(8000), ..SourceTime::default() }, Some(report(0, 0))));
    assert_eq!(found.cause, Cause::OwnerSlots);
    assert_eq!(found.figure, Figure::Slots { at_a_time: Some(8), waited: ms(8000) });
}

#[test]
fn round_trips_are_found() {
    let found = first(&measured(SourceTime { opening: ms(8000), ..SourceTime::default() }, None));
    assert_eq!((found.cause, found.figure), (Cause::RoundTrips, Figure::Requests { count: 4, rtt: Some(ms(3)) }));
}

#[test]
fn network_time_is_attributed_to_path_buffer_or_processors() {
    let mut slow = for_bytes(Some(report(0, 9500)));
    assert_eq!(first(&slow).cause, Cause::Path);
    // Drops of other programs, too few to slow the path down.
    slow.udp_drops = 5;
    assert_eq!(first(&slow).cause, Cause::Path);
    (slow.udp_drops, slow.clamped_buffer) = (200, Some(208 << 10));
    let found = first(&slow);
    assert_eq!((found.cause, found.peers.len()), (Cause::ReceiveBuffer, 0));
    assert_eq!(found.figure, Figure::Drops { count: 200, clamped_buffer: Some(208 << 10) });
    let busy = Some(MachineReport { idle_permille: 20, own_permille: 900 });
    let owner = slow.sources.get_mut(&peer("owner")).unwrap().report.as_mut().unwrap();
    owner.machine = busy;
    assert_eq!(first(&slow).cause, Cause::OwnerCpu);
    slow.machine = busy;
    assert_eq!((first(&slow).cause, first(&slow).figure), (Cause::OwnCpu, Figure::Machine(busy)));
}

#[test]
fn rate_limit_is_found_on_a_busy_machine() {
    let mut capped = for_bytes(Some(report(9000, 500)));
    capped.machine = Some(MachineReport { idle_permille: 0, own_permille: 10 });
    assert_eq!(first(&capped).cause, Cause::OwnerLimit);
}

#[test]
fn limit_disk_and_processors_of_this_peer_are_found() {
    let time = SourceTime { throttle_wait: ms(9000), ..SourceTime::default() };
    let mut capped = measured(time, Some(report(0, 9500)));
    capped.limit_down = Some(1 << 20);
    let found = first(&capped);
    assert_eq!((found.cause, found.figure), (Cause::OwnLimit, Figure::Rate(Some(1 << 20))));
    assert!(found.peers.is_empty());

    let writes = SourceTime { bytes_wait: ms(500), disk_wait: ms(9000), disk_write: ms(9400), ..SourceTime::default() };
    assert_eq!(first(&measured(writes, Some(report(0, 9500)))).cause, Cause::OwnDisk);
    // Concurrent writes cost no time.
    let hashes = SourceTime { bytes_wait: ms(500), disk_wait: ms(500), disk_write: ms(8000), ..SourceTime::default() };
    let found = first(&measured(hashes, Some(report(0, 9500))));
    assert_eq!((found.cause, found.figure), (Cause::OwnCpu, Figure::Machine(None)));
    let mut syncs = for_bytes(Some(report(3000, 3000)));
    (syncs.active, syncs.sync) = (ms(3000), ms(7000));
    assert_eq!((first(&syncs).cause, first(&syncs).figure), (Cause::OwnDisk, Figure::Time(ms(7000))));
}

#[test]
fn owner_without_a_report_is_found() {
    let found = first(&for_bytes(None));
    assert_eq!((found.cause, found.peers), (Cause::Unsaid, vec![peer("owner")]));
    assert_eq!(first(&for_bytes(Some(UploadReport::default()))).cause, Cause::Unsaid);
}

#[test]
fn even_or_short_transfer_has_no_outstanding_cause() {
    assert!(findings(&Measured::default()).is_empty());
    let mut even = for_bytes(Some(report(2500, 2500)));
    let owner = &mut even.sources.get_mut(&peer("owner")).unwrap().time;
    (owner.bytes_wait, owner.throttle_wait) = (ms(5000), ms(2800));
    owner.disk_wait = ms(100);
    let found = findings(&even);
    assert!(!found.is_empty() && found.iter().all(|finding| !finding.stands_out()), "{found:?}");
    // Too short for a diagnosis.
    let short = Measured { elapsed: ms(5), ..for_bytes(Some(report(9000, 0))) };
    assert!(findings(&short).is_empty());
    // Most of the time no request was open.
    let idle = Measured { elapsed: ms(100_000), ..for_bytes(Some(report(10_000, 0))) };
    assert!(findings(&idle).is_empty());
}

#[test]
fn sources_are_named_in_the_order_of_their_share() {
    let mut many = for_bytes(Some(report(9000, 500)));
    let owner = many.sources[&peer("owner")].clone();
    let short = |source: &Source, factor: u32| {
        let time = source.time;
        let time = SourceTime {
            streaming: time.streaming / factor,
            streams: time.streams / factor,
            bytes_wait: time.bytes_wait / factor,
            ..time
        };
        Source { time, ..source.clone() }
    };
    many.sources.insert(peer("half"), short(&owner, 2));
    many.sources.insert(peer("least"), short(&owner, 100));
    let found = first(&many);
    assert_eq!((found.cause, found.peers), (Cause::OwnerLimit, vec![peer("owner"), peer("half")]));
}

proptest! {
    #[test]
    fn shares_of_arbitrary_measurements_are_sorted_and_within_bounds(
        elapsed in 0u64..20_000, active in 0u64..20_000, sync in 0u64..20_000,
        times in prop::collection::vec(0u64..20_000, 9), waits in prop::collection::vec(0u64..20_000, 3),
        drops in any::<u64>(), silent in any::<bool>(),
    ) {
        let time = SourceTime {
            opening: ms(times[0]), queued: ms(times[1]), streaming: ms(times[2]), streams: ms(times[3]),
            bytes_wait: ms(times[4]), throttle_wait: ms(times[5]), decoder_wait: ms(times[6]), disk_wait: ms(times[7]),
            disk_write: ms(times[8]), requests: 1,
        };
        let report = (!silent).then(|| UploadReport { served: ms(waits[2]), ..report(waits[0], waits[1]) });
        let source = Source { time, report, ..Source::default() };
        let measured = Measured {
            elapsed: ms(elapsed), active: ms(active), sync: ms(sync), udp_drops: drops,
            sources: [(peer("owner"), source)].into(), ..Measured::default()
        };
        let found = findings(&measured);
        for finding in &found {
            prop_assert!((LISTED..=1.0).contains(&finding.share), "{:?}", finding);
        }
        prop_assert!(found.is_sorted_by(|a, b| a.share >= b.share));
    }
}
