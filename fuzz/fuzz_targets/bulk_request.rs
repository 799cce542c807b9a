//! Bulk request parser: arbitrary bytes yield a request or an error. For every file size the ranges of a request yield
//! groups of the file or an error. Reading a header allocates no more than its limit.

#![no_main]

use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use shared::{
    group_ranges::{GroupRanges, group_count},
    limits::MAX_BULK_HEADER_BYTES,
    net::bulk::{BulkRequest, HeaderError, read_header},
};

fuzz_target!(|input: (u64, &[u8])| {
    let (size, bytes) = input;
    // The bytes as they are, and as the body of a header with the right length, which mutation alone rarely finds.
    check(size, bytes);
    let mut framed = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    check(size, &framed);
});

fn check(size: u64, mut bytes: &[u8]) {
    let whole = bytes.len();
    let request = match block_on(read_header::<BulkRequest>(&mut bytes)) {
        Ok(request) => request,
        Err(HeaderError::TooLong(length)) => return assert!(length > MAX_BULK_HEADER_BYTES),
        Err(HeaderError::Stream(_) | HeaderError::Malformed) => return,
    };
    // A range takes at least two bytes on the wire.
    assert!(whole - bytes.len() <= 4 + MAX_BULK_HEADER_BYTES);
    assert!(request.groups.len() <= MAX_BULK_HEADER_BYTES / 2, "more ranges than the header can encode");
    let Ok(groups) = GroupRanges::requested(&request.groups, size) else { return };
    assert!(!groups.is_empty());
    let all: Vec<_> = groups.iter().collect();
    assert!(all.iter().all(|range| range.start < range.end && range.end <= group_count(size)));
    assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "the ranges are unsorted or touch");
    assert!(groups.bytes(size) <= size);
    let missing = groups.missing(size);
    assert_eq!(missing.bytes(size) + groups.bytes(size), size);
    assert_eq!(GroupRanges::requested(&groups.to_request(), size), Ok(groups));
}
