package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"github.com/urfave/cli/v2"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/holder"
	"unionfs/rootfs"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount a union of directories, or an image",
		UsageText: "unionfs mount --lower DIR [--lower DIR]... [--upper DIR [--work DIR]] [-o OPTIONS] [-f] TARGET\nunionfs mount [--upper DIR [--work DIR]] [-o OPTIONS] [-f] IMAGE TARGET",
		Description: `Merges the lower directories, the first one on top, or the layers of an image, and mounts the result on TARGET. With
--upper every change is written there, in the format of the kernel's overlayfs; without it the mount is read only. The
lower directories are never written to. They must not be changed by others while they are mounted.

With -o writeback=0 the kernel doesn't collect small writes: many of them take longer, but what opens files again and
again and looks at their attributes (compilers, interpreters, tar) is faster, and a full disk is reported by write(2).

The server runs in the background, and the command returns when the mount answers. "unionfs umount TARGET" ends both.

Examples:
   unionfs mount --lower patched --lower original /mnt
   unionfs mount --lower /usr --upper changes /mnt && touch /mnt/new && ls changes
   unionfs mount -o writeback=0 --lower src --upper build /mnt && make -C /mnt
   unionfs mount alpine /mnt`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "lower", Aliases: []string{"l"}, Usage: "a read-only branch `DIR`; may be given many times, the top one first"},
			&cli.StringFlag{Name: "upper", Aliases: []string{"u"}, Usage: "the writable branch `DIR`"},
			&cli.StringFlag{Name: "work", Aliases: []string{"w"}, Usage: "a `DIR` for unfinished work, on the same file system as the upper one; made if it is missing", DefaultText: "the upper directory's name with .work added"},
			&cli.StringSliceFlag{Name: "options", Aliases: []string{"o"}, Usage: "mount `OPTIONS` separated by commas: " + strings.Join(mountOptionNames, ", ")},
			&cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "serve in the foreground until unmounted or interrupted"},
			&cli.IntFlag{Name: readyFlag, Hidden: true, Value: -1},
		},
		Action: func(c *cli.Context) error {
			request, err := mountRequestOf(c)
			if err != nil {
				return err
			}
			switch {
			case c.Int(readyFlag) >= 0:
				return serveInBackground(c, request)
			case c.Bool("foreground"):
				return serveMount(c, request, nil)
			default:
				return startMountServer(request.target)
			}
		},
	}
}

// mountRequest is what the user wants mounted. All paths are absolute.
type mountRequest struct {
	lowers []string
	image  string // instead of lowers
	upper  string // "" for a read-only mount
	work   string
	target string
	fs     fs.Options
}

func mountRequestOf(c *cli.Context) (mountRequest, error) {
	r := mountRequest{lowers: c.StringSlice("lower"), upper: c.String("upper"), work: c.String("work")}
	switch {
	case len(r.lowers) > 0:
		if err := arguments(c, 1, 1, "TARGET, since --lower is given"); err != nil {
			return r, err
		}
		r.target = c.Args().First()
	case c.NArg() < 2:
		return r, usageError("mount: want --lower DIR and TARGET, or IMAGE and TARGET; see unionfs mount --help")
	default:
		if err := arguments(c, 2, 2, "IMAGE TARGET"); err != nil {
			return r, err
		}
		r.image, r.target = c.Args().Get(0), c.Args().Get(1)
	}
	if r.work != "" && r.upper == "" {
		return r, usageError("mount: --work is only for a mount with --upper")
	}
	if r.upper != "" && r.work == "" {
		r.work = filepath.Clean(r.upper) + ".work"
	}
	for _, path := range append([]*string{&r.target, &r.upper, &r.work}, pointers(r.lowers)...) {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return r, err
		}
		*path = absolute
	}
	return r, parseMountOptions(c.StringSlice("options"), &r.fs)
}

func pointers(s []string) []*string {
	p := make([]*string, len(s))
	for i := range s {
		p[i] = &s[i]
	}
	return p
}

var mountOptionNames = []string{
	"ro", "rw", "allow_other", "atime", "noatime", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "fsname=NAME", "noacl", "writeback=0|1", "debug",
}

// parseMountOptions reads options as mount(8) writes them. The last of two that contradict each other wins, as there.
func parseMountOptions(values []string, o *fs.Options) error {
	for _, value := range values {
		for option := range strings.SplitSeq(value, ",") {
			name, argument, _ := strings.Cut(option, "=")
			switch name {
			case "", "default_permissions", "defaults", "relatime":
				// Always so.
			case "ro", "rw":
				o.ReadOnly = name == "ro"
			case "allow_other":
				o.AllowOther = true
			case "noatime", "atime":
				o.NoAtime = name == "noatime"
			case "nosuid", "suid":
				o.NoSuid = name == "nosuid"
			case "nodev", "dev":
				o.NoDev = name == "nodev"
			case "noexec", "exec":
				o.NoExec = name == "noexec"
			case "noacl":
				o.NoACL = true
			case "debug":
				o.Debug = true
			case "fsname":
				o.FsName = argument
			case "writeback":
				if argument != "0" && argument != "1" {
					return usageError("mount: %s: want writeback=0 or writeback=1", option)
				}
				o.NoWriteback = argument == "0"
			default:
				return usageError("mount: unknown option %q; known are %s", option, strings.Join(mountOptionNames, ", "))
			}
		}
	}
	return nil
}

// serveMount mounts, and serves until it is unmounted. An interrupt unmounts it.
func serveMount(c *cli.Context, r mountRequest, link *holder.Link) error {
	s, err := rootfs.NewServing(link)
	if err == nil && !s.Resumes() {
		err = checkTarget(r)
	}
	if err != nil {
		return fmt.Errorf("mounting %s: %w", r.target, err)
	}
	// One cache for all branches: hundreds of them, each with one of its own, would exceed the process's limit.
	descriptors := cow.NewDescriptors(0)
	defer descriptors.Close()
	union, err := openUnion(c, r, s, descriptors)
	if err != nil {
		return fmt.Errorf("mounting %s: %w", r.target, err)
	}
	r.fs.Logger = rootfs.NewLogger(c.App.ErrWriter, r.fs.Debug)
	return serveUnion(union, r.target, r.fs, c.App.ErrWriter, s)
}

// serveUnion mounts a union, and serves until it is unmounted; then it closes the union. An interrupt unmounts it.
func serveUnion(union *cow.Union, target string, o fs.Options, stderr io.Writer, s *rootfs.Serving) error {
	// Before anybody can see the mount, and end it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	server, err := s.Mount(union, target, o)
	if err != nil {
		return errors.Join(err, union.Close())
	}
	gone := announceServer(target)
	defer gone()
	go func() {
		for range signals {
			if err := server.Unmount(); err != nil {
				fmt.Fprintf(stderr, "unionfs: %v\n", err)
			}
		}
	}()
	if err = s.Ready(union); err != nil {
		// Whoever waits for the mount has gone: nobody would know that there is one.
		err = errors.Join(err, server.Unmount())
	}
	server.Wait()
	return errors.Join(err, union.Close())
}

// openUnion opens the branches of the request and merges them.
func openUnion(c *cli.Context, r mountRequest, s *rootfs.Serving, descriptors *cow.Descriptors) (*cow.Union, error) {
	o := cow.Options{Upper: r.upper, Work: r.work, Descriptors: descriptors}
	closeAll := func() {
		for _, b := range o.Lower {
			b.Close()
		}
	}
	for _, lower := range r.lowers {
		branch, err := cow.OpenDirBranch(lower, cow.DirOptions{Descriptors: descriptors})
		if err != nil {
			closeAll()
			return nil, err
		}
		o.Lower = append(o.Lower, branch)
	}
	if r.image != "" {
		image := r.image
		if s.Resumes() {
			image = s.Image
		}
		branch, err := imageBranch(c, image)
		if err != nil {
			return nil, err
		}
		s.Image = branch.Describe()
		o.Lower = append(o.Lower, branch)
	}
	// With no upper directory, cow.New says so; no work directory should be left of that.
	if info, err := os.Stat(r.upper); err == nil && info.IsDir() {
		if err := os.Mkdir(r.work, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			closeAll()
			return nil, fmt.Errorf("making the work directory: %w", err)
		}
	}
	return s.NewUnion(o)
}

// checkTarget refuses a target that has something mounted on it or is within a branch: a server that
// met its own mount in a branch would wait for itself.
func checkTarget(r mountRequest) error {
	target, err := filepath.EvalSymlinks(r.target)
	if err != nil {
		return nil // fs.Mount says what is wrong with it
	}
	mounted, err := mountinfo.Mounted(target)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("the target is in use: something is mounted on it; end that (unionfs umount %s) or take another directory", r.target)
	}
	for _, branch := range append([]string{r.upper, r.work}, r.lowers...) {
		if branch == "" {
			continue
		}
		if real, err := filepath.EvalSymlinks(branch); err == nil && isWithin(target, real) {
			return fmt.Errorf("the target is inside the branch %s; take a directory outside of it", branch)
		}
	}
	return nil
}

// isWithin reports whether the path is dir or below it. Both are absolute and clean.
func isWithin(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
