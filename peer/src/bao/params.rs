//! Bounds of `bao`, each with its unit and reason.

/// Bytes read and hashed at a time.
pub const HASH_BLOCK_BYTES: u64 = 1 << 20;
/// Part of a large file that one thread hashes, bytes: its 4095 hash pairs are one write of 256 KiB.
pub const HASH_PART_BYTES: u64 = 64 << 20;
/// Size of the runs in which files are read for a check and verified bytes are written, bytes. With 1 MiB, waiting for
/// the disk took a tenth of all time.
pub const DISK_RUN_BYTES: usize = 2 << 20;
/// Alignment of such runs in memory and in the file, bytes: a multiple of the block size of common disks.
pub const DIRECT_ALIGNMENT: usize = 4096;
