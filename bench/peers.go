package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the peers, in the order of reports.
const (
	peerUnionfs        = "unionfs"
	peerUnionfsImage   = "unionfs-image"
	peerOverlayfs      = "overlayfs"
	peerOverlayfsTuned = "overlayfs-tuned"
	peerFuseOverlayfs  = "fuse-overlayfs"
	peerUnionfsFuse    = "unionfs-fuse"
	peerMergerfs       = "mergerfs"
	peerPlain          = "plain"

	// peerUnionfsHeld is not among PeerNames: only what its holder costs is of interest.
	peerUnionfsHeld = "unionfs-held"
)

// PeerNames lists the file systems that can be measured, in the order of reports. The first two are unionfs itself, over
// directories and over an image of the same layers.
func PeerNames() []string {
	return []string{
		peerUnionfs, peerUnionfsImage,
		peerOverlayfs, peerOverlayfsTuned, peerFuseOverlayfs, peerUnionfsFuse, peerMergerfs, peerPlain,
	}
}

// newPeer returns the peer of that name. program is our own binary.
func newPeer(name, program string) (peer, error) {
	switch name {
	case peerUnionfs:
		return &unionfsPeer{program: program}, nil
	case peerUnionfsImage:
		return &unionfsPeer{program: program, image: true}, nil
	case peerUnionfsHeld:
		return heldPeer{program}, nil
	case peerOverlayfs:
		return &overlayfsPeer{}, nil
	case peerOverlayfsTuned:
		return &overlayfsPeer{tuned: true}, nil
	case peerFuseOverlayfs:
		return fuseOverlayfsPeer{}, nil
	case peerUnionfsFuse:
		return unionfsFusePeer{}, nil
	case peerMergerfs:
		return mergerfsPeer{}, nil
	case peerPlain:
		return plainPeer{}, nil
	}
	return nil, fmt.Errorf("unknown peer %q; known are %s", name, strings.Join(PeerNames(), ", "))
}

// unionfsPeer is our own program, over directories or over an image.
type unionfsPeer struct {
	program string
	image   bool
}

func (p *unionfsPeer) name() string {
	if p.image {
		return peerUnionfsImage
	}
	return peerUnionfs
}

func (p *unionfsPeer) version(ctx context.Context) (string, error) {
	return programVersion(ctx, "unionfs", "", p.program, "version")
}

func (p *unionfsPeer) options() string {
	if p.image {
		return "unionfs mount -f --upper U --work W IMAGE TARGET, of an image that was pulled from a registry and has each branch as a layer"
	}
	return "unionfs mount -f --lower 0 --lower 1 … --upper U --work W TARGET"
}

func (p *unionfsPeer) unable(*work) string { return "" }

func (p *unionfsPeer) mount(ctx context.Context, s *stack, at site) (*mounted, error) {
	var args []string
	if p.image {
		if s.image == "" {
			return nil, unable("there is no image of these branches")
		}
		args = []string{"--root", s.store}
	}
	args = append(args, "mount", "-f", "--upper", at.upper, "--work", at.work)
	if p.image {
		args = append(args, s.image)
	} else {
		for _, lower := range s.lowers {
			args = append(args, "--lower", lower)
		}
	}
	return startServer(ctx, s.dir, at.target, p.program, append(args, at.target)...)
}

// overlayfsPeer is the kernel's. Its layers are given one by one through the mount API (fsconfig(2), Linux 6.8), so that
// the 4 KiB of mount(2)'s options are no limit.
type overlayfsPeer struct {
	tuned bool
}

func (p *overlayfsPeer) name() string {
	if p.tuned {
		return peerOverlayfsTuned
	}
	return peerOverlayfs
}

func (p *overlayfsPeer) version(context.Context) (string, error) {
	if os.Geteuid() != 0 {
		return "", unable("only root can mount it")
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", unable("this kernel has none (%v)", err)
	}
	unix.Close(fd)
	return "Linux " + kernelRelease(), nil
}

func (p *overlayfsPeer) flags() []string {
	if p.tuned {
		return []string{"index=off", "xino=off", "redirect_dir=on", "metacopy=on", "volatile"}
	}
	return []string{"index=off", "xino=off"}
}

func (p *overlayfsPeer) options() string {
	return "fsconfig: lowerdir+=0, lowerdir+=1, …, upperdir=U, workdir=W, " + strings.Join(p.flags(), ", ")
}

func (p *overlayfsPeer) unable(w *work) string {
	if p.tuned && !w.writes {
		return "for reading the same as overlayfs"
	}
	return ""
}

func (p *overlayfsPeer) mount(_ context.Context, s *stack, at site) (_ *mounted, err error) {
	start := time.Now()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)
	for i, lower := range s.absolute() {
		if err := unix.FsconfigSetString(fd, "lowerdir+", lower); err != nil {
			return nil, unable("it refuses lower branch %d (%v)", i+1, err)
		}
	}
	settings := append([]string{"upperdir=" + at.upper, "workdir=" + at.work}, p.flags()...)
	for _, setting := range settings {
		key, value, hasValue := strings.Cut(setting, "=")
		if hasValue {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, key)
		}
		if err != nil {
			return nil, unable("it refuses the option %s (%v)", setting, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, unable("it refuses these branches (%v)", err)
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, at.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("move_mount %s: %w", at.target, err)
	}
	if _, err := deviceOf(at.target); err != nil {
		return nil, err
	}
	return &mounted{
		root:    at.target,
		seconds: time.Since(start).Seconds(),
		unmount: func() error { return unmountKernel(at.target) },
	}, nil
}

func unmountKernel(target string) error {
	for range 20 {
		err := unix.Unmount(target, 0)
		if err == nil || errors.Is(err, unix.EINVAL) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return unix.Unmount(target, unix.MNT_DETACH)
}

// fuseOverlayfsPeer is what rootless podman and buildah use.
type fuseOverlayfsPeer struct{}

func (fuseOverlayfsPeer) name() string { return peerFuseOverlayfs }

func (fuseOverlayfsPeer) version(ctx context.Context) (string, error) {
	return programVersion(ctx, "fuse-overlayfs", "fuse-overlayfs", "fuse-overlayfs", "--version")
}

func (fuseOverlayfsPeer) options() string {
	return "fuse-overlayfs -f -o lowerdir=0:1:…,upperdir=U,workdir=W,static_nlink,volatile TARGET"
}

func (fuseOverlayfsPeer) unable(*work) string { return "" }

func (fuseOverlayfsPeer) mount(ctx context.Context, s *stack, at site) (*mounted, error) {
	options := "lowerdir=" + strings.Join(s.lowers, ":") + ",upperdir=" + at.upper + ",workdir=" + at.work + ",static_nlink,volatile"
	if err := checkArgument(options); err != nil {
		return nil, err
	}
	return startServer(ctx, s.dir, at.target, "fuse-overlayfs", "-f", "-o", options, at.target)
}

// checkArgument refuses an argument that is longer than the kernel takes (MAX_ARG_STRLEN, 32 pages, in binfmts.h).
func checkArgument(argument string) error {
	if limit := 32 * os.Getpagesize(); len(argument) >= limit {
		return unable("the branches' names are longer than one argument may be (%d bytes)", limit)
	}
	return nil
}

// unionfsFusePeer is the older union of that name.
type unionfsFusePeer struct{}

func (unionfsFusePeer) name() string { return peerUnionfsFuse }

func (unionfsFusePeer) version(ctx context.Context) (string, error) {
	return programVersion(ctx, "unionfs-fuse", "unionfs-fuse", "unionfs-fuse", "--version")
}

const unionfsFuseCache = "kernel_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600"

func (unionfsFusePeer) options() string {
	return "unionfs-fuse -f -o cow,hide_meta_files," + unionfsFuseCache + " U=RW:0=RO:1=RO:… TARGET"
}

func (unionfsFusePeer) unable(*work) string { return "" }

func (unionfsFusePeer) mount(ctx context.Context, s *stack, at site) (*mounted, error) {
	branches := at.upper + "=RW:" + strings.Join(s.lowers, "=RO:") + "=RO"
	if err := checkArgument(branches); err != nil {
		return nil, err
	}
	return startServer(ctx, s.dir, at.target, "unionfs-fuse", "-f", "-o", "cow,hide_meta_files,"+unionfsFuseCache, branches, at.target)
}

// mergerfsPeer pools directories. It has no copy-on-write: what is in a lower branch can't be changed.
type mergerfsPeer struct{}

func (mergerfsPeer) name() string { return peerMergerfs }

func (mergerfsPeer) version(ctx context.Context) (string, error) {
	return programVersion(ctx, "mergerfs", "mergerfs", "mergerfs", "--version")
}

const mergerfsOptions = "category.create=ff,category.search=ff,minfreespace=0,cache.files=auto-full,cache.writeback=true," +
	"cache.entry=3600,cache.attr=3600,cache.negative_entry=3600,cache.statfs=3600,cache.readdir=true,cache.symlinks=true"

func (mergerfsPeer) options() string {
	return "mergerfs -f -o " + mergerfsOptions + " U=RW:0=RO:1=RO:… TARGET"
}

func (mergerfsPeer) unable(w *work) string {
	if w.changesLower {
		return "it has no copy-on-write"
	}
	return ""
}

func (mergerfsPeer) mount(ctx context.Context, s *stack, at site) (*mounted, error) {
	branches := []string{at.upper + "=RW"}
	for _, lower := range s.absolute() {
		branches = append(branches, lower+"=RO")
	}
	argument := strings.Join(branches, ":")
	if err := checkArgument(argument); err != nil {
		return nil, err
	}
	return startServer(ctx, s.dir, at.target, "mergerfs", "-f", "-o", mergerfsOptions, argument, at.target)
}

// plainPeer is no union: the merged tree in one ordinary directory, the floor for all the others.
type plainPeer struct{}

func (plainPeer) name() string { return peerPlain }

func (plainPeer) version(context.Context) (string, error) { return "a directory", nil }

func (plainPeer) options() string { return "no mount: the merged tree in one directory" }

func (plainPeer) unable(w *work) string {
	if w.changesLower {
		return "it has no lower branch"
	}
	return ""
}

func (plainPeer) mount(_ context.Context, s *stack, _ site) (*mounted, error) {
	if s.plain == "" {
		return nil, unable("the branches were not made here, so there is no merged copy of them")
	}
	return &mounted{root: s.plain, unmount: func() error {
		// Leave it as it was for the next run.
		return os.RemoveAll(filepath.Join(s.plain, scratchName))
	}}, nil
}

// choosePeers returns the peers of those names in the order of reports, unionfs always among them.
func choosePeers(names []string, program string) ([]peer, error) {
	var peers []peer
	for _, name := range names {
		if _, err := newPeer(name, program); err != nil {
			return nil, err
		}
	}
	for _, name := range PeerNames() {
		ours := name == peerUnionfs || name == peerUnionfsImage
		if !ours && !slices.Contains(names, name) {
			continue
		}
		p, err := newPeer(name, program)
		if err != nil {
			return nil, err
		}
		peers = append(peers, p)
	}
	if slices.Contains(names, peerUnionfsHeld) {
		peers = append(peers, heldPeer{program})
	}
	return peers, nil
}
