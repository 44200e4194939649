package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/holder"
	"unionfs/overlayopts"
	"unionfs/rootfs"
)

// startDropInServer starts the process that serves the mount, and waits for its report. The server has none of the caller's
// streams: callers wait until every copy of standard error is closed. It keeps the working directory until it has opened
// the branches, which may be relative to it.
func startDropInServer(args []string, target string) error {
	if err := keepDirectoriesOnly(); err != nil {
		return err
	}
	return startServer(append([]string{dropInServer}, args...), target)
}

// keepDirectoriesOnly lets the server inherit no descriptor but directories, which a branch may be given as
// (/proc/self/fd/N): one of the others could be a copy of standard error.
func keepDirectoriesOnly() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("looking at the open files: %w", err)
	}
	for _, entry := range open {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd < 3 {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// serveDropIn is the server's side of startDropInServer: that of its holder, and that of the server itself. It returns the
// process's exit code, which is seen only if the mount failed.
func serveDropIn(args []string, stderr io.Writer) int {
	line, err := overlayopts.ParseArgs(args)
	if err != nil {
		return exitCode(err) // whoever started this has parsed them too
	}
	target, err := filepath.Abs(line.Target)
	if err != nil {
		return exitFailure
	}
	link, held, err := linkOrHold(append([]string{dropInServer}, args...), target)
	if !held && err == nil {
		if err = serveOverlay(line, target, stderr, link); err != nil {
			link.Failed(err)
		}
	}
	if err == nil {
		return 0
	}
	return exitCode(err)
}

// serveOverlay mounts, and serves until it is unmounted. An interrupt unmounts it.
func serveOverlay(line *overlayopts.CommandLine, target string, stderr io.Writer, link *holder.Link) error {
	s, err := rootfs.NewServing(link)
	if err == nil && !s.Resumes() {
		err = checkDropInTarget(line)
	}
	if err != nil {
		return err
	}
	descriptors := cow.NewDescriptors(0)
	defer descriptors.Close()
	union, err := openOverlay(line, s, descriptors)
	if err != nil {
		return err
	}
	return serveUnion(union, target, overlayMountOptions(line, stderr), stderr, s)
}

// openOverlay opens the branches and merges them.
func openOverlay(line *overlayopts.CommandLine, s *rootfs.Serving, descriptors *cow.Descriptors) (*cow.Union, error) {
	owners, err := overlayOwners(line)
	if err != nil {
		return nil, err
	}
	o := cow.Options{
		Upper: line.Upper, Work: line.Work, Owners: owners, Descriptors: descriptors,
		Volatile: line.Volatile, NoRedirect: line.NoRedirect,
	}
	switch {
	case line.KeepMetacopy:
		o.Metacopy = cow.MetacopyKeep
	case line.NoMetacopy:
		o.Metacopy = cow.MetacopyOff
	}
	if o.Upper == "" {
		o.Work = ""
	}
	for _, lower := range line.Lower {
		options := cow.DirOptions{Descriptors: descriptors, Override: owners.Xattr}
		if line.UIDMap != nil && onMappedMount(lower) {
			options.UIDMap, options.GIDMap = owners.UIDMap, owners.GIDMap
		}
		branch, err := cow.OpenDirBranch(lower, options)
		if err != nil {
			for _, b := range o.Lower {
				b.Close()
			}
			return nil, err
		}
		o.Lower = append(o.Lower, branch)
	}
	if !s.Resumes() {
		awaitWork(o.Work, workLimit)
	}
	return s.NewUnion(o)
}

// onMappedMount reports whether a path is on a mount that maps IDs itself (mount_setattr(2), MOUNT_ATTR_IDMAP).
func onMappedMount(path string) bool {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return false
	}
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		is := uint64(m.ID) == st.Mnt_id
		return !is, is
	})
	return err == nil && len(found) == 1 && slices.Contains(strings.Split(found[0].Options, ","), "idmapped")
}

// workLimit is how long a mount waits for a former server of the same upper branch.
const workLimit = 20 * time.Second

// awaitWork waits until no server uses the work directory, for at most the limit: who unmounts and mounts again at once
// meets the former server completing the upper branch. cow.New says what is wrong if it goes on.
func awaitWork(work string, limit time.Duration) {
	if work == "" {
		return
	}
	lock, err := os.OpenFile(filepath.Join(work, "lock"), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer lock.Close()
	delay := time.Millisecond
	for end := time.Now().Add(limit); time.Now().Before(end); delay = min(2*delay, 100*time.Millisecond) {
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != unix.EWOULDBLOCK {
			return
		}
		time.Sleep(delay)
	}
}

// nobody is shown as the owner of files whose own has no ID, as everywhere in Linux (/proc/sys/fs/overflowuid).
const nobody = 65534

// overlayOwners are the owners that the mount shows and stores.
func overlayOwners(line *overlayopts.CommandLine) (cow.OwnerPolicy, error) {
	policy, err := rootfs.OwnerPolicy()
	if err != nil {
		return policy, err
	}
	policy.UIDMap, policy.GIDMap = idMaps(line.UIDMap), idMaps(line.GIDMap)
	policy.Xattr = line.XattrPermissions != 0
	policy.SquashUID, policy.SquashGID = line.SquashUID, line.SquashGID
	if policy.UIDs == nil {
		policy.Other.UID = nobody
	}
	if policy.GIDs == nil {
		policy.Other.GID = nobody
	}
	return policy, nil
}

func idMaps(from []overlayopts.IDMap) []cow.IDMap {
	var maps []cow.IDMap
	for _, m := range from {
		maps = append(maps, cow.IDMap(m))
	}
	return maps
}

func overlayMountOptions(line *overlayopts.CommandLine, stderr io.Writer) fs.Options {
	o := fs.Options{
		FsName:      line.FsName,
		AllowOther:  line.AllowOther || os.Geteuid() == 0,
		ReadOnly:    line.ReadOnly,
		NoSuid:      line.NoSuid,
		NoDev:       !line.Dev,
		NoExec:      line.NoExec,
		NoAtime:     !line.Atime,
		NoACL:       line.NoACL || line.XattrPermissions != 0, // an ACL would be in the inode's mode
		NoWriteback: line.NoWriteback,
		Debug:       line.Debug,
		Logger:      rootfs.NewLogger(stderr, line.Debug),
	}
	if o.FsName == "" {
		o.FsName = line.Source
	}
	if selinuxOn() {
		o.Context = line.Context // others refuse it, and their callers mean nothing by it
	}
	// Lifetimes of years are fuse-overlayfs's own default, and mean that nobody else changes the branches.
	const years = 365 * 24 * time.Hour
	if t := line.Timeout; t != nil && *t < years {
		if *t == 0 {
			*t = -1
		}
		o.EntryTimeout, o.AttrTimeout = *t, *t
	}
	return o
}

func selinuxOn() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &st) == nil && st.Type == unix.SELINUX_MAGIC
}
