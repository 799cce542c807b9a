//! What may stand in a resume file: any bytes are read without a panic, and nothing is claimed that no record with a right
//! check says. Mutation alone never finds a check of 16 bytes, so here the checks are made right and then, if the input says
//! so, something of the file is damaged.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use peer::store::download::resume::format::{BootId, parse};
use shared::group_ranges::{GroupRanges, group_count};

const RECORD_BYTES: usize = 40;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// As it stands.
    raw: &'a [u8],
    /// The header's body, followed by the records: what docs/transfer.md describes, written down independently here.
    body: &'a [u8],
    records: Vec<(u8, u64, u64)>,
    /// Bits to flip, by their place.
    damage: Vec<(u16, u8)>,
    /// How much of the end is missing.
    torn: u8,
    boot: BootId,
}

fuzz_target!(|input: Input<'_>| {
    look(input.raw, &input.boot, None);
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
        let check = blake3::keyed_hash(&key, &record);
        record.extend(&check.as_bytes()[..16]);
        assert_eq!(record.len(), RECORD_BYTES);
        file.extend(record);
    }
    // What the records say, whatever of it is left after the damage.
    let said: GroupRanges =
        input.records.iter().filter(|(_, first, second)| first < second).map(|r| r.1..r.2).collect();
    for (at, bit) in &input.damage {
        let at = usize::from(*at) % file.len();
        file[at] ^= 1 << (bit % 8);
    }
    file.truncate(file.len().saturating_sub(usize::from(input.torn)));
    look(&file, &input.boot, Some(&said));
});

fn look(bytes: &[u8], boot: &BootId, said: Option<&GroupRanges>) {
    let Ok(recovered) = parse(bytes) else { return };
    let groups = group_count(recovered.header.file.size);
    let (sure, doubtful) = recovered.claims(boot);
    for claimed in [&recovered.durable, &recovered.written, &sure, &doubtful] {
        let all: Vec<_> = claimed.iter().collect();
        assert!(all.iter().all(|range| range.start < range.end && range.end <= groups), "groups of the file");
        assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "in order, apart");
        assert!(all.len() <= bytes.len() / RECORD_BYTES, "no more than records");
        if let Some(said) = said {
            assert!(said.covers(claimed), "claimed by no record");
        }
    }
    assert!(sure.iter().all(|range| !doubtful.intersects(range)), "sure or doubtful");
}
