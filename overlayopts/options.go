package overlayopts

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options is what the option strings of a mount ask for. The zero value is a mount of nothing; see [Options.Check].
type Options struct {
	Lower []string // lowerdir: read-only directories, the top one first
	Upper string   // upperdir: the writable directory; "" for a read-only mount
	Work  string   // workdir; means nothing without Upper

	// UIDMap and GIDMap are uidmapping and gidmapping. With several options of the same name the last one counts.
	UIDMap, GIDMap []IDMap

	// SquashUID and SquashGID are the owner that everything is shown with, by squash_to_uid, squash_to_gid or
	// squash_to_root, which counts less than the other two.
	SquashUID, SquashGID *uint32

	// XattrPermissions is xattr_permissions: 0 keeps owners and modes in inodes; 1 and 2, in an xattr.
	XattrPermissions int

	// Timeout is how long names and attributes may be kept; nil where the mount doesn't say. It is never negative.
	Timeout *time.Duration

	Volatile    bool // nothing is made durable (volatile, fsync=0)
	NoACL       bool // noacl
	NoWriteback bool // writeback=0
	NoRedirect  bool // redirect_dir=off, follow or nofollow: a lower directory can't be renamed
	// KeepMetacopy (metacopy=on) and NoMetacopy (metacopy=off) say whether files of which only the metadata is changed
	// stay without data in the upper branch, or are copied at once.
	KeepMetacopy, NoMetacopy bool

	// Context is the SELinux context of all files (context=), for the kernel.
	Context string

	// FsName is the source of the mount (fsname=).
	FsName string

	// The generic options of mount(8). Of two that contradict each other, the last one counts.
	ReadOnly, NoSuid, NoExec, Debug bool

	// Dev and Atime are on only if asked for, since fuse-overlayfs mounts nodev and noatime.
	Dev, Atime bool

	// AllowOther is set by allow_other. Whoever may mount with no help always gets it.
	AllowOther bool

	// Unknown are options that mean nothing here, as they were written.
	Unknown []string
}

// IDMap shows the Size IDs from Disk on, as they are in the branches, as those from Shown on. In a container's map Disk
// is the ID inside and Shown the one outside.
type IDMap struct{ Disk, Shown, Size uint32 }

// Parse adds an option string, as it follows -o, to the options. Options are separated by commas; "\," is a comma within
// one. The error quotes the option at fault; o may then be half changed.
func (o *Options) Parse(s string) error {
	squashRoot := false
	for _, option := range splitOptions(s) {
		if option == "" {
			continue
		}
		if option == "squash_to_root" {
			squashRoot = true
			continue
		}
		if err := o.parseOne(option); err != nil {
			return fmt.Errorf("mount option %q: %w", option, err)
		}
	}
	if squashRoot {
		if o.SquashUID == nil {
			o.SquashUID = new(uint32)
		}
		if o.SquashGID == nil {
			o.SquashGID = new(uint32)
		}
	}
	return nil
}

// Check reports what the options lack or what of them can't be together, in the user's words.
func (o *Options) Check() error {
	switch {
	case len(o.Lower) == 0 && o.Upper == "":
		return errors.New("there is nothing to mount; name the branches with -o lowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR]")
	case o.Upper != "" && o.Work == "":
		return errors.New("upperdir needs workdir=DIR, an otherwise unused directory on the same file system")
	}
	return nil
}

func (o *Options) parseOne(option string) (err error) {
	name, value, hasValue := strings.Cut(option, "=")
	if set, ok := o.flag(name); ok && !hasValue {
		set()
		return nil
	}
	if !hasValue {
		if name != "fsync" && name != "writeback" && !ignored(name) {
			o.Unknown = append(o.Unknown, option)
		}
		return nil
	}
	switch name {
	case "lowerdir":
		o.Lower, err = paths(value)
	case "lowerdir+":
		var path string
		if path, err = onePath(value); err == nil {
			o.Lower = append(o.Lower, path)
		}
	case "upperdir":
		o.Upper, err = onePath(value)
	case "workdir":
		o.Work, err = onePath(value)
	case "uidmapping":
		o.UIDMap, err = idMaps(value)
	case "gidmapping":
		o.GIDMap, err = idMaps(value)
	case "squash_to_uid":
		o.SquashUID, err = id(value)
	case "squash_to_gid":
		o.SquashGID, err = id(value)
	case "xattr_permissions":
		if o.XattrPermissions, err = number(value, 2); err != nil {
			err = errors.New("want 0, 1 or 2")
		}
	case "timeout":
		o.Timeout, err = seconds(value)
	case "writeback":
		o.NoWriteback, err = isOff(value)
	case "fsync":
		o.Volatile, err = isOff(value)
	case "redirect_dir":
		err = o.redirect(value)
	case "metacopy":
		if value != "on" && value != "off" {
			err = errors.New("want on or off")
		}
		o.KeepMetacopy, o.NoMetacopy = value == "on", value == "off"
	case "context":
		o.Context = unquote(unescape(value))
	case "fsname":
		o.FsName = unescape(value)
	default:
		if !ignored(name) {
			o.Unknown = append(o.Unknown, option)
		}
	}
	return err
}

// flag returns what an option that takes no value does.
func (o *Options) flag(name string) (set func(), ok bool) {
	to := func(field *bool, v bool) (func(), bool) { return func() { *field = v }, true }
	switch name {
	case "ro", "rw":
		return to(&o.ReadOnly, name == "ro")
	case "nosuid", "suid":
		return to(&o.NoSuid, name == "nosuid")
	case "noexec", "exec":
		return to(&o.NoExec, name == "noexec")
	case "dev", "nodev":
		return to(&o.Dev, name == "dev")
	case "atime", "noatime":
		return to(&o.Atime, name == "atime")
	case "volatile":
		return to(&o.Volatile, true)
	case "noacl":
		return to(&o.NoACL, true)
	case "allow_other":
		return to(&o.AllowOther, true)
	case "debug":
		return to(&o.Debug, true)
	}
	return nil, false
}

// ignored reports whether an option is known and asks for nothing: it is always so, is for mount(8) or the library of
// other programs, or is about how the kernel's overlayfs works inside.
func ignored(name string) bool {
	switch name {
	case "defaults", "default_permissions", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime",
		"diratime", "nodiratime", "async", "sync", "dirsync", "auto", "noauto", "user", "nouser", "users", "nousers",
		"owner", "group", "nofail", "_netdev", "silent", "loud", "mand", "nomand", "iversion", "noiversion",
		"nonempty", "auto_unmount", "allow_root", "subtype", "max_read", "max_write", "big_writes", "comment", "intr":
		return true
	case "threaded", "fast_ino", "static_nlink", "xino", "plugins":
		return true // inode numbers are always stable, merged directories always have one link, and the server its threads
	case "userxattr", "index", "nfs_export", "uuid", "verity":
		return true
	}
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}

func (o *Options) redirect(value string) error {
	switch value {
	case "on":
		o.NoRedirect = false
	case "off", "follow", "nofollow":
		o.NoRedirect = true
	default:
		return errors.New("want on, off, follow or nofollow")
	}
	return nil
}

// paths reads the value of lowerdir. Colons separate; "\:" is a colon.
func paths(value string) ([]string, error) {
	var dirs []string
	for _, part := range split(value, ':') {
		if part == "" {
			return nil, errors.New("it has an empty path (branches with data only, after \"::\", can't be mounted)")
		}
		dir, err := onePath(part)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

func onePath(value string) (string, error) {
	path := unescape(value)
	switch {
	case path == "":
		return "", errors.New("the path is empty")
	case strings.ContainsRune(path, 0):
		return "", errors.New("the path has a zero byte")
	}
	return path, nil
}

// idMaps reads triples of numbers: ID on disk, ID to show, how many. Empty ones don't count: podman 4.3 puts a colon before
// the first.
func idMaps(value string) ([]IDMap, error) {
	fields := slices.DeleteFunc(strings.Split(value, ":"), func(field string) bool { return field == "" })
	if len(fields) == 0 || len(fields)%3 != 0 {
		return nil, errors.New("want INSIDE:OUTSIDE:SIZE, once or several times")
	}
	var maps []IDMap
	for ; len(fields) > 0; fields = fields[3:] {
		var n [3]uint32
		for i := range n {
			v, err := strconv.ParseUint(fields[i], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%q is no ID or number of IDs", fields[i])
			}
			n[i] = uint32(v)
		}
		m := IDMap{Disk: n[0], Shown: n[1], Size: n[2]}
		// The highest number is no ID: it is what chown(2) takes for "leave it".
		if m.Size == 0 || uint64(max(m.Disk, m.Shown))+uint64(m.Size) > math.MaxUint32 {
			return nil, fmt.Errorf("%d IDs from %d and %d on: want at least one and none above %d", m.Size, m.Disk, m.Shown, uint32(math.MaxUint32-1))
		}
		maps = append(maps, m)
	}
	return maps, nil
}

func id(value string) (*uint32, error) {
	v, err := strconv.ParseUint(value, 10, 32)
	if err != nil || v == math.MaxUint32 {
		return nil, errors.New("want an ID, a number")
	}
	n := uint32(v)
	return &n, nil
}

func number(value string, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("want a number up to %d", most)
	}
	return n, nil
}

// isOff reads 1 for on and 0 for off.
func isOff(value string) (bool, error) {
	n, err := number(value, 1)
	if err != nil {
		return false, errors.New("want 0 or 1")
	}
	return n == 0, nil
}

// longest is where a lifetime becomes the longest there is.
const longest = time.Duration(math.MaxInt64)

func seconds(value string) (*time.Duration, error) {
	f, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(f) || f < 0 {
		return nil, errors.New("want a number of seconds")
	}
	d := longest
	if f < longest.Seconds() {
		d = time.Duration(f * float64(time.Second))
	}
	return &d, nil
}

// splitOptions cuts an option string at its commas. A context may have commas too; mount(8) wants it in quotation marks then.
func splitOptions(s string) []string {
	const quote = `context="`
	return splitBut(s, ',', func(option string) int {
		if rest, ok := strings.CutPrefix(option, quote); ok {
			if end := strings.IndexByte(rest, '"'); end >= 0 {
				return len(quote) + end + 1
			}
		}
		return 0
	})
}

// split cuts at a separator that no backslash stands before. The escapes stay in the parts.
func split(s string, separator byte) []string {
	return splitBut(s, separator, func(string) int { return 0 })
}

// splitBut is split, but in that many bytes from the start of a part as whole says of it there is no separator.
func splitBut(s string, separator byte, whole func(rest string) int) []string {
	var parts []string
	start := 0
	for i := whole(s); i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case separator:
			parts = append(parts, s[start:i])
			start = i + 1
			i += whole(s[start:])
		}
	}
	return append(parts, s[start:])
}

// unescape takes away the backslash before a character, as the kernel's overlayfs does (ovl_unescape in
// fs/overlayfs/params.c).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unquote takes away the quotation marks that mount(8) wants around a context, which may have commas in it.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}
