//! Paging through listings, and grouping of received files.

use crate::discovery::params;
use std::{cell::Cell, convert::Infallible};

use protocol::election::SeatRole;
use shared::{epoch::Epoch, rpc::nameserver::SeatView};

use super::*;

fn seat(peer: &str, epoch: u64) -> Seat {
    Seat { epoch: Epoch(epoch), peer: peer.parse().unwrap(), endpoint: "quic://127.0.0.1:1".parse().unwrap() }
}

fn view(seat: Seat) -> View {
    let epoch_high = seat.epoch;
    View { role: SeatRole::Follower, seat: SeatView { seat: Some(seat), epoch_high }, stopped: None }
}

fn file(name: &str) -> FileMeta {
    let hash = ContentHash([1; 32]);
    FileMeta { name: name.parse().unwrap(), size: 1, hash, mtime_micros: 0, executable: false }
}

/// Page `number` of an index with one file on each of `pages` pages.
fn index_page(seat: &Seat, number: usize, pages: usize) -> IndexPage {
    let file = file(&format!("file{number}"));
    let next = (number + 1 < pages).then(|| (file.name.to_string(), file.hash));
    IndexPage { epoch: seat.epoch, files: vec![IndexedFile { file, owners: Vec::new() }], next }
}

/// Number of the page after a position.
fn number_of(after: &After) -> usize {
    after.as_ref().map_or(0, |(name, _)| name.strip_prefix("file").unwrap().parse::<usize>().unwrap() + 1)
}

#[tokio::test]
async fn listing_that_takes_longer_than_the_wait_for_a_page_is_complete() {
    const PAGES: usize = 5;
    let (_views, watched) = watch::channel(view(seat("tracker", 1)));
    let listing = list_pages(watched, Duration::from_secs(2), |seat, after| async move {
        // The pages take 3 s together, and each of them far less than the wait.
        sleep(Duration::from_millis(600)).await;
        Ok(index_page(&seat, number_of(&after), PAGES))
    })
    .await
    .unwrap();
    assert_eq!(listing.files.len(), PAGES);
}

#[tokio::test]
async fn listing_continues_with_the_next_tracker_after_the_last_page() {
    let (views, watched) = watch::channel(view(seat("first", 1)));
    let asked = std::cell::RefCell::new(Vec::new());
    let (views, asked_pages) = (&views, &asked);
    let listing = list_pages(watched, Duration::from_secs(60), |seat, after| async move {
        let number = number_of(&after);
        asked_pages.borrow_mut().push((seat.peer.to_string(), number));
        if number == 1 && seat.epoch == Epoch(1) {
            views.send_replace(view(self::seat("second", 2)));
            return Err(Refusal::Tracker(TrackerError::Unavailable("a test stops the tracker".to_owned())));
        }
        Ok(index_page(&seat, number, 3))
    })
    .await
    .unwrap();
    let asked: Vec<_> = asked.borrow().iter().map(|(peer, number)| format!("{peer} {number}")).collect();
    assert_eq!(asked, ["first 0", "first 1", "second 1", "second 2"]);
    assert_eq!((listing.epoch, listing.tracker, listing.files.len()), (Epoch(2), Some("second".parse().unwrap()), 3));
}

#[tokio::test]
async fn wait_for_a_page_without_tracker_ends_in_no_tracker() {
    let (_views, watched) = watch::channel(View { role: SeatRole::Electing, seat: SeatView::default(), stopped: None });
    let ask = |_: Seat, _: After| async { unreachable!("there is no tracker to ask") };
    let error = list_pages(watched, Duration::from_millis(10), ask).await.unwrap_err();
    assert!(matches!(&error, TrackerQueryError::NoTracker { why } if why == "none was elected in time"), "{error}");
}

#[tokio::test]
async fn listing_of_a_tracker_that_repeats_itself_ends() {
    let (_views, watched) = watch::channel(view(seat("tracker", 1)));
    let ask = |seat: Seat, _: After| async move { Ok(index_page(&seat, 0, 2)) };
    let error = list_pages(watched, Duration::from_secs(60), ask).await.unwrap_err();
    assert!(matches!(error, TrackerQueryError::NoTracker { .. }), "{error}");
}

/// Pages that a peer is asked for until [`collect_files`] ends; fails beyond the bound.
async fn pages_until_end(page: impl Fn(usize) -> FilePage) -> (usize, Result<(), ListingError<Infallible>>) {
    let asked = Cell::new(0);
    let (files, ended) = collect_files("wanted", |_| {
        let number = asked.replace(asked.get() + 1);
        assert!(number <= MAX_PAGES_PER_PEER, "the peer is asked for ever");
        std::future::ready(Ok(page(number)))
    })
    .await;
    assert!(files.is_empty());
    (asked.get(), ended)
}

#[tokio::test]
async fn endless_listing_without_matches_ends() {
    let name = |number: usize| Some(format!("other{number:09}").parse().unwrap());
    let (pages, ended) = pages_until_end(|number| FilePage { files: Vec::new(), next: name(number) }).await;
    assert!(pages == MAX_PAGES_PER_PEER && matches!(ended, Err(ListingError::TooLong)), "{pages} pages: {ended:?}");
    let (pages, ended) = pages_until_end(|_| FilePage { files: Vec::new(), next: name(7) }).await;
    assert!(pages == 2 && matches!(ended, Err(ListingError::NotInOrder)), "{pages} pages: {ended:?}");
    let many = vec![file("other"); limits::MAX_FILES_PER_PEER / 2];
    let (pages, ended) = pages_until_end(|number| FilePage { files: many.clone(), next: name(number) }).await;
    assert!(pages == 2 && matches!(ended, Err(ListingError::TooLong)), "{pages} pages: {ended:?}");
}

fn received(peer: &str, hash: ContentHash, size: u64, mtime_micros: i64) -> (Contact, FileMeta) {
    let contact = Contact { peer: peer.parse().unwrap(), endpoint: "quic://127.0.0.1:1".parse().unwrap() };
    (contact, FileMeta { name: "a.bin".parse().unwrap(), size, hash, mtime_micros, executable: false })
}

#[test]
fn version_counts_each_receiver_once_and_content_without_swarm_is_left_out() {
    let (real, phantom) = (ContentHash([1; 32]), ContentHash([2; 32]));
    let size = params::MIN_SWARM_BYTES;
    let versions = by_receivers(vec![
        received("p1", real, size, 5),
        received("liar", phantom, size, i64::MAX),
        received("liar", phantom, size, i64::MAX),
        received("p2", real, size, 5),
        received("liar", real, size, i64::MAX),
        received("liar", real, size - 1, i64::MAX),
        received("liar", DIRECTORY_HASH, size, i64::MAX),
        received("liar", DIRECTORY_HASH, 0, i64::MAX),
        received("liar", PACKS_HASH, size, i64::MAX),
    ]);
    let counted: Vec<_> =
        versions.iter().map(|found| (found.file.hash, found.file.mtime_micros, found.owners.len())).collect();
    assert_eq!(counted, [(real, 5, 3), (phantom, i64::MAX, 1)]);
}
