package volumes

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Kind is what stands behind a mount point.
type Kind int

const (
	Bind  Kind = iota // a directory or file of the host
	Named             // a named volume
	Tmpfs             // memory
	Image             // what is in an image, read only
)

// Volume is one mount that the user asked for. It is kept with the container, as JSON.
type Volume struct {
	Kind Kind `json:"kind"`

	// Source is the absolute path on the host of a Bind, the name of a Named volume, and where an Image is mounted. Empty for
	// a Named volume means an anonymous one, which gets a random name.
	Source string `json:"source,omitempty"`

	// Target is where it is mounted in the container: absolute, clean, and not the root.
	Target string `json:"target"`

	// Options are mount options in the words of the OCI runtime specification, without bind and rbind: ro, nosuid,
	// rprivate, size=64m, …; and U, to give all that is in it to the container's user.
	Options []string `json:"options,omitempty"`

	// NonRecursive mounts the source without the mounts below it.
	NonRecursive bool `json:"nonRecursive,omitempty"`

	// NoCopy leaves a new volume empty, whatever the image has in its place.
	NoCopy bool `json:"noCopy,omitempty"`

	// Anonymous says that the Named volume was made for this container.
	Anonymous bool `json:"anonymous,omitempty"`

	// Reference is the image's, as the user named it.
	Reference string `json:"reference,omitempty"`

	// Image is its ID, for the caller.
	Image string `json:"image,omitempty"`

	// Labels are for a Named volume that has to be made.
	Labels map[string]string `json:"-"`
}

// ReadOnly reports whether the container may only read.
func (v *Volume) ReadOnly() bool { return slices.Contains(v.Options, "ro") }

// ParseVolume reads the value of -v: [HOST-PATH|NAME:]TARGET[:OPTION,…]. A source with a slash or a leading dot is a
// path, relative to dir if it isn't absolute; anything else is a volume's name.
func ParseVolume(value, dir string) (Volume, error) {
	fail := func(format string, args ...any) (Volume, error) {
		return Volume{}, fmt.Errorf("volume %q: %w", value, fmt.Errorf(format, args...))
	}
	parts := strings.Split(value, ":")
	var v Volume
	var source, options string
	switch len(parts) {
	case 1:
		v.Kind, v.Target = Named, parts[0]
	case 3:
		if options = parts[2]; options == "" {
			return fail("the options after the second colon are empty")
		}
		fallthrough
	case 2:
		if source, v.Target = parts[0], parts[1]; source == "" {
			return fail("the source before the colon is empty; want HOST-PATH:TARGET or NAME:TARGET")
		}
	default:
		return fail("too many colons; for paths with a colon use --mount type=bind,source=…,target=…")
	}
	if err := v.setSource(source, dir); err != nil {
		return fail("%w", err)
	}
	if err := v.setTarget(v.Target); err != nil {
		return fail("%w", err)
	}
	if options != "" {
		if err := v.addOptions(strings.Split(options, ",")); err != nil {
			return fail("%w", err)
		}
	}
	return v, nil
}

// ParseMount reads the value of --mount: type=bind|volume|tmpfs|image, source=, target=, readonly, and options, separated by
// commas, as a line of a CSV file. The type is volume if it isn't given.
func ParseMount(value, dir string) (Volume, error) {
	v, err := parseMount(value, dir)
	if err != nil {
		return Volume{}, fmt.Errorf("mount %q: %w", value, err)
	}
	return v, nil
}

func parseMount(value, dir string) (Volume, error) {
	var v Volume
	fields, err := csv.NewReader(strings.NewReader(value)).Read()
	if err != nil {
		return v, errors.New("want KEY=VALUE,… with double quotes around a pair that has a comma")
	}
	kind, source, target := "volume", "", ""
	var options []string
	for _, field := range fields {
		key, val, hasValue := strings.Cut(field, "=")
		on := !hasValue || val == "true" || val == "1"
		off := val == "false" || val == "0"
		switch key {
		case "readonly", "ro", "rw", "bind-nonrecursive", "volume-nocopy", "chown", "U":
			if !on && !off {
				return v, fmt.Errorf("%s is neither true nor false", field)
			}
		}
		switch key {
		case "type":
			kind = val
		case "source", "src":
			source = val
		case "target", "destination", "dst":
			target = val
		case "readonly", "ro":
			if on {
				options = append(options, "ro")
			}
		case "rw":
			if off {
				options = append(options, "ro")
			}
			if kind == "image" && on {
				return v, errors.New("an image can only be read; mount a volume to write to")
			}
		case "chown", "U":
			if on {
				options = append(options, "U")
			}
		case "bind-propagation":
			options = append(options, val)
		case "bind-nonrecursive":
			v.NonRecursive = on
		case "volume-nocopy":
			v.NoCopy = on
		case "volume-label":
			name, content, _ := strings.Cut(val, "=")
			if v.Labels == nil {
				v.Labels = map[string]string{}
			}
			v.Labels[name] = content
		case "volume-driver":
			if val != "local" {
				return v, fmt.Errorf("there is no volume driver %q; known is local", val)
			}
		case "consistency":
			// Docker's word for what is always so here.
		case "tmpfs-size":
			options = append(options, "size="+val)
		case "tmpfs-mode":
			options = append(options, "mode="+val)
		default:
			return v, fmt.Errorf("unknown key %q; known are type, source, target, readonly, bind-propagation, bind-nonrecursive, volume-nocopy, volume-label, tmpfs-size, tmpfs-mode and U", key)
		}
	}
	if target == "" {
		return v, errors.New("target= is missing")
	}
	if err := v.setTarget(target); err != nil {
		return v, err
	}
	switch kind {
	case "bind", "image":
		if source == "" {
			return v, errors.New("source= is missing")
		}
		v.Source = source
		if kind == "bind" {
			v.Source = absolute(source, dir)
		} else {
			v.Kind, v.Source, v.Reference = Image, "", source
			options = append(slices.DeleteFunc(options, func(o string) bool { return o == "ro" }), "ro")
		}
	case "volume":
		v.Kind, v.Source = Named, source
		if source != "" && !validName(source) {
			return v, fmt.Errorf("%q is not a volume's name; %s", source, nameRule)
		}
	case "tmpfs":
		if source != "" {
			return v, errors.New("a tmpfs has no source")
		}
		v.Kind = Tmpfs
	default:
		return v, fmt.Errorf("unknown type %q; known are bind, volume, tmpfs and image", kind)
	}
	return v, v.addOptions(options)
}

// ParseTmpfs reads the value of --tmpfs: TARGET[:OPTION,…].
func ParseTmpfs(value string) (Volume, error) {
	target, options, hasOptions := strings.Cut(value, ":")
	v := Volume{Kind: Tmpfs}
	err := v.setTarget(target)
	if err == nil && hasOptions {
		err = v.addOptions(strings.Split(options, ","))
	}
	if err != nil {
		return Volume{}, fmt.Errorf("tmpfs %q: %w", value, err)
	}
	return v, nil
}

// CheckTargets refuses two volumes at one mount point.
func CheckTargets(all []Volume) error {
	seen := map[string]bool{}
	for _, v := range all {
		if seen[v.Target] {
			return fmt.Errorf("two volumes are to be mounted at %s; give each a target of its own", v.Target)
		}
		seen[v.Target] = true
	}
	return nil
}

func (v *Volume) setSource(source, dir string) error {
	switch {
	case source == "":
	case strings.HasPrefix(source, ".") || strings.Contains(source, "/"):
		v.Kind, v.Source = Bind, absolute(source, dir)
	case !validName(source):
		return fmt.Errorf("%q is neither a path (which has a slash) nor a volume's name; %s", source, nameRule)
	default:
		v.Kind, v.Source = Named, source
	}
	return nil
}

func (v *Volume) setTarget(target string) error {
	switch {
	case target == "":
		return fmt.Errorf("the target is empty; it must be an absolute path in the container")
	case strings.ContainsRune(target, 0):
		return fmt.Errorf("the target contains a zero byte")
	case !path.IsAbs(target):
		return fmt.Errorf("the target %q is not an absolute path in the container", target)
	}
	if v.Target = path.Clean(target); v.Target == "/" {
		return fmt.Errorf("the target is the container's root; it must be below it")
	}
	return nil
}

// Options that exclude each other, by what they decide about.
var exclusive = [][]string{
	{"ro", "rw"},
	{"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"},
	{"suid", "nosuid"},
	{"dev", "nodev"},
	{"exec", "noexec"},
	{"bind", "rbind"},
	{"z", "Z"},
}

func (v *Volume) addOptions(options []string) error {
	decided := map[int]string{}
	for _, option := range options {
		group := slices.IndexFunc(exclusive, func(words []string) bool { return slices.Contains(words, option) })
		if group >= 0 {
			if earlier, ok := decided[group]; ok {
				return fmt.Errorf("options %s and %s: give one of them, once", earlier, option)
			}
			decided[group] = option
		}
		key, val, hasValue := strings.Cut(option, "=")
		switch {
		case option == "":
			return fmt.Errorf("an empty option; options are separated by single commas")
		case option == "bind":
			v.NonRecursive = true
		case option == "rbind":
		case option == "z" || option == "Z":
			// SELinux labels: there is nothing to relabel, since no process gets a label of its own.
		case option == "nocopy":
			v.NoCopy = true
		case option == "cached" || option == "delegated" || option == "consistent":
			// Docker's words for what is always so here.
		case option == "U" && (v.Kind == Bind || v.Kind == Named):
			v.Options = append(v.Options, option)
		case group >= 0:
			v.Options = append(v.Options, option)
		case v.Kind == Tmpfs && hasValue && (key == "size" || key == "mode" || key == "uid" || key == "gid" || key == "nr_inodes"):
			if !isSizeOrNumber(val) {
				return fmt.Errorf("option %s: %q is not a number", key, val)
			}
			v.Options = append(v.Options, option)
		default:
			return fmt.Errorf("unknown option %q; known are ro, rw, U, z, Z, nocopy, nosuid, nodev, noexec, bind, private, slave, shared and their r… forms", option)
		}
	}
	return nil
}

// isSizeOrNumber reports whether text is digits, with at most one unit after them.
func isSizeOrNumber(text string) bool {
	if n := len(text); n > 1 && strings.ContainsRune("kKmMgG%", rune(text[n-1])) {
		text = text[:n-1]
	}
	return text != "" && strings.Trim(text, "0123456789") == ""
}

const nameRule = "a name has letters, digits, _ . and -, starts with a letter or digit, and has at most 200 bytes"

// validName checks nameRule. It is no regular expression: compiling that one took a tenth of the program's start.
func validName(name string) bool {
	if name == "" || len(name) > 200 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

func absolute(name, dir string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

// ParseVolumesFrom reads the value of --volumes-from: CONTAINER[:ro|rw].
func ParseVolumesFrom(value string) (container string, readOnly bool, err error) {
	container, mode, found := strings.Cut(value, ":")
	if container == "" || found && mode != "ro" && mode != "rw" && mode != "z" {
		return "", false, fmt.Errorf("volumes from %q: want CONTAINER, CONTAINER:ro or CONTAINER:rw", value)
	}
	return container, mode == "ro", nil
}

// Inherited are another container's volumes as --volumes-from gives them to a new one: memory is each container's own. They are
// no longer anonymous: they go with the container that they were made for.
func Inherited(theirs []Volume, readOnly bool) []Volume {
	var out []Volume
	for _, v := range theirs {
		if v.Kind != Bind && v.Kind != Named {
			continue
		}
		v.Anonymous = false
		v.Options = slices.DeleteFunc(slices.Clone(v.Options), func(o string) bool { return o == "U" || readOnly && o == "rw" })
		if readOnly && !v.ReadOnly() {
			v.Options = append(v.Options, "ro")
		}
		out = append(out, v)
	}
	return out
}
