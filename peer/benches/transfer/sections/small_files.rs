//! Many small files as one directory, between two running peers; against copying them on this machine and against rsync
//! over ssh. All three end with the files on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Plan;
use crate::{
    cluster::Cluster,
    files,
    process::{Deadline, timed},
    report::{Report, ratios},
    sshd::Sshd,
};

pub const NAME: &str = "small-files";

/// The folder with the files, as a name in the network and below a share.
const TREE: &str = "tree";
const FILES_PER_FOLDER: usize = 100;
/// Sizes, bytes: 10,000 of them are 79 MB.
const SIZES: std::ops::RangeInclusive<u64> = 7_608..=8_192;

pub fn run(plan: &Plan, report: &mut Report) {
    let count = plan.pick(10_000, 500);
    let folder = plan.folder();
    let folder = folder.path();
    let mut cluster = Cluster::start(folder, None);
    let source = cluster.share("owner").join(TREE);
    let bytes = make_tree(&source, count);
    cluster.start_peer("receiver", &[]);
    cluster.start_peer("owner", &[]);
    wait_for_files(&cluster, count);
    let sshd = Sshd::start(folder).map_err(|why| report.note(NAME, format!("rsync over ssh skipped: {why}"))).ok();

    let (mut by_brasa, mut by_copy, mut by_rsync) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..plan.runs {
        // Each time to another place outside the share, so that what comes is not shared, counted and removed again.
        let target = |who: &str| {
            let target = folder.join(format!("{who}-{run}"));
            fs::create_dir(&target).expect("an empty folder");
            files::settle(folder);
            target
        };
        let place = target("brasa");
        let to = place.to_string_lossy();
        let ((), seconds) = timed(|| {
            cluster.run("receiver", &["download", &format!("{TREE}/"), "--to", &to]);
        });
        by_brasa.push(seconds);
        check_and_remove(&source, &place, run == 0);

        let place = target("copy");
        let ((), seconds) = timed(|| {
            succeed(Command::new("cp").arg("-a").arg(&source).arg(&place));
            files::settle(folder);
        });
        by_copy.push(seconds);
        check_and_remove(&source, &place, run == 0);

        if let Some(sshd) = &sshd {
            let place = target("rsync");
            let ((), seconds) = timed(|| {
                succeed(&mut sshd.rsync(&source, &place));
                files::settle(folder);
            });
            by_rsync.push(seconds);
            check_and_remove(&source, &place, run == 0);
        }
    }

    report.note(NAME, format!("{count} files, {:.1} MB; cp and rsync are followed by a sync", bytes as f64 / 1e6));
    for (name, times) in [("Brasa", &by_brasa), ("cp -a", &by_copy), ("rsync over ssh", &by_rsync)] {
        report.add(NAME, format!("{name}: time"), "s", times.clone(), None);
        let rates = times.iter().map(|seconds| f64::from(count) / seconds).collect();
        report.add(NAME, format!("{name}: rate"), "files/s", rates, None);
    }
    report.add(NAME, "Brasa's time / cp -a", "ratio", ratios(&by_brasa, &by_copy), None);
    report.add(NAME, "Brasa's time / rsync over ssh", "ratio", ratios(&by_brasa, &by_rsync), None);
}

/// Makes files in folders of [`FILES_PER_FOLDER`]; how many bytes they have.
fn make_tree(folder: &Path, count: u32) -> u64 {
    let mut random = fastrand::Rng::with_seed(2);
    let paths = (0..count as usize).map(|file| path_of(folder, file));
    paths.zip(0u64..).fold(0, |bytes, (path, seed)| {
        let size = random.u64(SIZES);
        files::make_small(&path, size, seed);
        bytes + size
    })
}

fn path_of(folder: &Path, file: usize) -> PathBuf {
    folder.join(format!("{:03}/{:05}.bin", file / FILES_PER_FOLDER, file))
}

fn wait_for_files(cluster: &Cluster, count: u32) {
    let deadline = Deadline::new();
    loop {
        let known = cluster.run("receiver", &["listAll"])["files"].as_array().map_or(0, Vec::len);
        if known == count as usize {
            return;
        }
        deadline.pause(&format!("{count} files ({known} are known)"));
    }
}

/// All files must be there; in the first run each byte of them is looked at.
fn check_and_remove(source: &Path, place: &Path, bytes: bool) {
    let copy = place.join(TREE);
    let (mut count, mut expected) = (0, 0);
    for folder in fs::read_dir(source).expect("the tree is there") {
        let folder = folder.expect("readable").path();
        for file in fs::read_dir(&folder).expect("a folder of the tree") {
            let file = file.expect("readable").path();
            let other = copy.join(file.strip_prefix(source).expect("it lies in the tree"));
            expected += 1;
            count += usize::from(other.is_file());
            if bytes {
                files::assert_same(&file, &other);
            }
        }
    }
    assert_eq!(count, expected, "all files came");
    fs::remove_dir_all(place).expect("it can be removed");
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
