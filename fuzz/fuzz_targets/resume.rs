//! Resume file parser: it reads arbitrary bytes without a panic and claims no group without a record with a valid
//! checksum.
//!
//! Mutation alone never finds a checksum of 16 bytes. The target therefore writes valid checksums, then damages the
//! file as the input directs.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use peer::store::download::resume::format::{BootId, parse};
use shared::group_ranges::{GroupRanges, group_count};

const RECORD_BYTES: usize = 40;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// File without a valid checksum.
    raw: &'a [u8],
    /// Body of the header. With `records` it forms a file in the format of docs/transfer.md, encoded independently
    /// here.
    body: &'a [u8],
    /// Records: kind, first and second number.
    records: Vec<(u8, u64, u64)>,
    /// Bits to flip: offset and bit number.
    damage: Vec<(u16, u8)>,
    /// Bytes to cut off at the end.
    torn: u8,
    boot: BootId,
}

fuzz_target!(|input: Input<'_>| {
    check(input.raw, &input.boot, None);
    let mut file = b"brasa\0hv".to_vec();
    file.extend(1u32.to_le_bytes());
    file.extend(u32::try_from(input.body.len()).unwrap_or(u32::MAX).to_le_bytes());
    file.extend(input.body);
    let key = *blake3::hash(&file).as_bytes();
    file.extend(key);
    for (kind, first, second) in &input.records {
        let mut record = vec![*kind, 0, 0, 0, 0, 0, 0, 0];
        record.extend(first.to_le_bytes());
        record.extend(second.to_le_bytes());
        let checksum = blake3::keyed_hash(&key, &record);
        record.extend(&checksum.as_bytes()[..16]);
        assert_eq!(record.len(), RECORD_BYTES);
        file.extend(record);
    }
    // All groups that the records claim; the damaged file may claim a subset.
    let recorded: GroupRanges =
        input.records.iter().filter(|(_, first, second)| first < second).map(|r| r.1..r.2).collect();
    for (at, bit) in &input.damage {
        let at = usize::from(*at) % file.len();
        file[at] ^= 1 << (bit % 8);
    }
    file.truncate(file.len().saturating_sub(usize::from(input.torn)));
    check(&file, &input.boot, Some(&recorded));
});

fn check(bytes: &[u8], boot: &BootId, recorded: Option<&GroupRanges>) {
    let Ok(recovered) = parse(bytes) else { return };
    let groups = group_count(recovered.header.file.size);
    let (sure, doubtful) = recovered.claims(boot);
    for claimed in [&recovered.durable, &recovered.written, &sure, &doubtful] {
        let all: Vec<_> = claimed.iter().collect();
        assert!(all.iter().all(|range| range.start < range.end && range.end <= groups), "a range is beyond the file");
        assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "the ranges are unsorted or touch");
        assert!(all.len() <= bytes.len() / RECORD_BYTES, "more ranges than records");
        if let Some(recorded) = recorded {
            assert!(recorded.covers(claimed), "no record claims a group");
        }
    }
    assert!(sure.iter().all(|range| !doubtful.intersects(range)), "a group is both sure and doubtful");
}
