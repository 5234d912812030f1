//! How much memory the queries of this process may take.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where nothing says how much memory there is.
const UNKNOWN_BYTES: u64 = 4 << 30;
/// The default is this part of the memory: the rest is for live spans, caches and compaction.
const SHARE: u64 = 2;

/// The bytes that are set, or when that is 0 half of the memory of the container or machine.
pub fn query_bytes(set: u64) -> usize {
    let bytes = if set > 0 { set } else { memory_bytes(Path::new("/")).unwrap_or(UNKNOWN_BYTES) / SHARE };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The least of the machine's memory and the limits of the control groups that this process is in; `root` is where the file system begins.
/// None where the system does not say.
fn memory_bytes(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| total_in(&text));
    let groups = read("proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|path| fs::read_to_string(root.join(path)).ok()?.trim().parse().ok());
    limits.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`, which is in kibibytes.
fn total_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files with the limits of the groups in `/proc/self/cgroup` and of the groups above them, in both versions of control groups. In a
/// container the group is often shown as it is called outside, while its files lie at the top.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (top, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|above| Path::new(top).join(above).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(memory_bytes(root.path()), expected, "{files:?}");
    }

    #[test]
    fn the_least_limit_counts() {
        let machine = ("proc/meminfo", "MemTotal:        8192 kB\nMemFree:  1 kB\n");
        check(&[], None);
        check(&[machine], Some(8 * MIB));
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        check(&[machine, v2, ("sys/fs/cgroup/a/b/memory.max", "max\n"), ("sys/fs/cgroup/a/memory.max", "4194304\n")], Some(4 * MIB));
        check(&[machine, v2, ("sys/fs/cgroup/memory.max", "1048576\n")], Some(MIB));
        let v1 = ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/docker/1\n");
        check(&[machine, v1, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n")], Some(2 * MIB));
        check(&[machine, v1, ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "9223372036854771712\n")], Some(8 * MIB));
        check(&[("proc/meminfo", "MemTotal: much\n")], None);
    }

    #[test]
    fn what_is_set_is_what_holds() {
        assert_eq!(query_bytes(12345), 12345);
        assert!(query_bytes(0) > 0);
    }
}
