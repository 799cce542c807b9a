//! Many small files as one directory, downloaded by a running peer. The baselines are a local copy and rsync over
//! ssh. All three end with the files on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cluster::Cluster,
    files,
    process::Deadline,
    report::{Report, ratios},
    settings::Settings,
    sshd::Sshd,
    usage::timed,
};

pub const NAME: &str = "small-files";

/// Directory of the files: its name in the network and its path in the share.
const TREE: &str = "tree";
const FILES_PER_DIRECTORY: usize = 100;
/// File sizes, bytes. 10,000 files have 79 MB.
const SIZES: std::ops::RangeInclusive<u64> = 7_608..=8_192;

pub fn run(settings: &Settings, report: &mut Report) {
    let count = settings.pick(10_000, 500);
    let folder = settings.folder();
    let folder = folder.path();
    let mut cluster = Cluster::start(folder, None);
    let source = cluster.share("owner").join(TREE);
    let bytes = create_tree(&source, count);
    cluster.start_peer("receiver", &[]);
    cluster.start_peer("owner", &[]);
    wait_for_files(&cluster, count);
    let sshd = Sshd::start(folder).map_err(|error| report.note(NAME, format!("rsync over ssh skipped: {error}"))).ok();

    let (mut by_brasa, mut by_copy, mut by_rsync) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..settings.runs {
        // A new directory outside the share for each run, so that the peer does not share the copy.
        let target = |name: &str| {
            let target = folder.join(format!("{name}-{run}"));
            fs::create_dir(&target).expect("the directory is writable");
            files::settle(folder);
            target
        };
        let to = target("brasa");
        let path = to.to_string_lossy();
        let ((), seconds) = timed(|| {
            cluster.run("receiver", &["download", &format!("{TREE}/"), "--to", &path]);
        });
        by_brasa.push(seconds);
        check_and_remove(&source, &to, run == 0);

        let to = target("copy");
        let ((), seconds) = timed(|| {
            succeed(Command::new("cp").arg("-a").arg(&source).arg(&to));
            files::settle(folder);
        });
        by_copy.push(seconds);
        check_and_remove(&source, &to, run == 0);

        if let Some(sshd) = &sshd {
            let to = target("rsync");
            let ((), seconds) = timed(|| {
                succeed(&mut sshd.rsync(&source, &to));
                files::settle(folder);
            });
            by_rsync.push(seconds);
            check_and_remove(&source, &to, run == 0);
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

/// Creates files in directories of [`FILES_PER_DIRECTORY`]. Returns their size in bytes.
fn create_tree(folder: &Path, count: u32) -> u64 {
    let mut random = fastrand::Rng::with_seed(2);
    let paths = (0..count as usize).map(|file| path_of(folder, file));
    paths.zip(0u64..).fold(0, |bytes, (path, seed)| {
        let size = random.u64(SIZES);
        files::create_small(&path, size, seed);
        bytes + size
    })
}

fn path_of(folder: &Path, file: usize) -> PathBuf {
    folder.join(format!("{:03}/{:05}.bin", file / FILES_PER_DIRECTORY, file))
}

fn wait_for_files(cluster: &Cluster, count: u32) {
    let deadline = Deadline::new();
    loop {
        let known = cluster.run("receiver", &["listAll"])["files"].as_array().map_or(0, Vec::len);
        if known == count as usize {
            return;
        }
        deadline.pause(&format!("{count} files in the listing ({known} are listed)"));
    }
}

/// Checks that all files arrived, and their contents if `contents`. Removes the copy.
fn check_and_remove(source: &Path, target: &Path, contents: bool) {
    let copy = target.join(TREE);
    let (mut count, mut expected) = (0, 0);
    for folder in fs::read_dir(source).expect("the tree exists") {
        let folder = folder.expect("readable").path();
        for file in fs::read_dir(&folder).expect("a directory of the tree") {
            let file = file.expect("readable").path();
            let other = copy.join(file.strip_prefix(source).expect("the file is in the tree"));
            expected += 1;
            count += usize::from(other.is_file());
            if contents {
                files::assert_same(&file, &other);
            }
        }
    }
    assert_eq!(count, expected, "all files arrive");
    fs::remove_dir_all(target).expect("the copy can be removed");
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
