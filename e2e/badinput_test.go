package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"unionfs/internal/testimage"
)

// oneLine checks that a command failed with the exit code, with nothing on standard output and one line on standard
// error, which contains all the words.
func oneLine(t *testing.T, r result, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	if r.stdout != "" {
		t.Errorf("standard output: %q", r.stdout)
	}
	line := strings.TrimSuffix(r.stderr, "\n")
	if !strings.HasPrefix(line, "unionfs: ") || strings.Contains(line, "\n") {
		t.Errorf("standard error is not one line of unionfs's: %q", r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("standard error lacks %q: %q", word, r.stderr)
		}
	}
}

func TestBadMounts(t *testing.T) {
	c := newCaller(t, "root")
	c.script(t, `mkdir lower lower/inside upper work target; echo x > lower/file; ln -s lower link`)
	tests := map[string]struct {
		args  []string
		code  int
		words []string
	}{
		"missing branch":                 {[]string{"mount", "--lower", "nowhere", "target"}, 1, []string{"nowhere", "doesn't exist"}},
		"branch is a file":               {[]string{"mount", "--lower", "lower/file", "target"}, 1, []string{"lower/file", "not a directory"}},
		"missing upper":                  {[]string{"mount", "--lower", "lower", "--upper", "nowhere", "target"}, 1, []string{"nowhere", "doesn't exist"}},
		"upper within work":              {[]string{"mount", "--lower", "lower", "--upper", "upper", "--work", "upper", "target"}, 1, []string{"must not contain each other"}},
		"work on another file system":    {[]string{"mount", "--lower", "lower", "--upper", "upper", "--work", "/dev/shm", "target"}, 1, []string{"same file system"}},
		"missing target":                 {[]string{"mount", "--lower", "lower", "nowhere"}, 1, []string{"nowhere", "no such directory"}},
		"target is a file":               {[]string{"mount", "--lower", "lower", "lower/file"}, 1, []string{"lower/file", "branch"}},
		"target is a branch":             {[]string{"mount", "--lower", "lower", "lower"}, 1, []string{"inside the branch"}},
		"target in a branch":             {[]string{"mount", "--lower", "lower", "lower/inside"}, 1, []string{"inside the branch"}},
		"target in a branch, by a link":  {[]string{"mount", "--lower", "link", "link/inside"}, 1, []string{"inside the branch"}},
		"the root as a branch":           {[]string{"mount", "--lower", "/", "target"}, 1, []string{"inside the branch /"}},
		"no target":                      {[]string{"mount", "--lower", "lower"}, 2, []string{"TARGET"}},
		"two targets":                    {[]string{"mount", "--lower", "lower", "target", "other"}, 2, []string{"other"}},
		"work without upper":             {[]string{"mount", "--lower", "lower", "--work", "work", "target"}, 2, []string{"--upper"}},
		"unknown mount option":           {[]string{"mount", "--lower", "lower", "-o", "ro,shiny", "target"}, 2, []string{"shiny"}},
		"unknown flag":                   {[]string{"mount", "--shiny", "target"}, 2, []string{"shiny"}},
		"unknown image":                  {[]string{"mount", "nowhere:1", "target"}, 1, []string{"nowhere:1", "no such image", "unionfs pull"}},
		"the reserved image":             {[]string{"mount", "host", "target"}, 1, []string{"unionfs try"}},
		"unmounting what is not mounted": {[]string{"umount", "target"}, 1, []string{"nothing is mounted"}},
		"unmounting what isn't ours":     {[]string{"umount", "/proc"}, 1, []string{"no union but proc"}},
		"unknown command":                {[]string{"munt", "target"}, 2, []string{"munt", "mount"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			oneLine(t, c.try(t, test.args...), test.code, test.words...)
		})
	}
	t.Run("target in use", func(t *testing.T) {
		out := c.script(t, `
			$UNIONFS mount --lower lower target
			$UNIONFS mount --lower lower target 2>&1 && exit 1
			$UNIONFS umount target`)
		if !strings.Contains(out, "in use") || strings.Count(out, "\n") != 1 {
			t.Errorf("got %q", out)
		}
	})
	t.Run("upper in use", func(t *testing.T) {
		out := c.script(t, `
			mkdir second
			$UNIONFS mount --lower lower --upper upper target
			$UNIONFS mount --lower lower --upper upper second 2>&1 && exit 1
			mkdir elsewhere
			$UNIONFS mount --lower lower --upper upper --work elsewhere second 2>&1 && exit 1
			# A new server takes over what the old one had locked, and nothing is left locked.
			$UNIONFS upgrade target
			$UNIONFS umount target
			$UNIONFS mount --lower lower --upper upper --work elsewhere second
			$UNIONFS umount second`)
		if strings.Count(out, "in use by another mount") != 2 || strings.Count(out, "\n") != 2 {
			t.Errorf("got %q", out)
		}
	})
	t.Run("the server was killed", func(t *testing.T) {
		out := c.script(t, `
			$UNIONFS mount --lower $PWD/lower target
			# The holder may have started another server between the two signals.
			while stat -f target >/dev/null 2>&1; do pkill -KILL -f "[r]eady-fd 3 --lower $PWD/lower target" || true; sleep 0.01; done
			$UNIONFS mount --lower lower target 2>&1 && exit 1
			$UNIONFS umount target
			$UNIONFS mount --lower lower target
			cat target/file
			$UNIONFS umount target`)
		if !strings.Contains(out, "unionfs umount") || !strings.HasSuffix(out, "x\n") {
			t.Errorf("got %q", out)
		}
	})
	if left, err := filepath.Glob(filepath.Join(c.home, "*.work")); err != nil || len(left) > 1 {
		t.Errorf("work directories are left: %v", left)
	}
}

// importBusybox stores the small image as bb:1.
func importBusybox(t *testing.T, c *caller) {
	t.Helper()
	tar := filepath.Join(c.home, "bb.tar")
	if err := os.WriteFile(tar, testimage.Tar(t, testimage.BusyboxFiles(t)...), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(t, "import", tar, "bb:1")
}

func TestBadRuns(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		tests := map[string]struct {
			args  []string
			code  int
			words []string
		}{
			"unknown image":         {[]string{"run", "--pull", "never", "nowhere", "true"}, 125, []string{"nowhere", "no such image", "unionfs pull"}},
			"bad pull policy":       {[]string{"run", "--pull", "sometimes", "bb:1", "true"}, 125, []string{"sometimes", "missing, always or never"}},
			"one of Docker's flags": {[]string{"run", "--gpus", "all", "bb:1", "true"}, 125, []string{"--gpus is not supported", "--device"}},
			"bad log driver":        {[]string{"run", "--log-driver", "syslog", "bb:1", "true"}, 125, []string{"syslog", "unionfs logs"}},
			"bad number":            {[]string{"stop", "-t", "soon", "x"}, 2, []string{"--time", "soon", "whole number", "unionfs stop --help"}},
			"no value":              {[]string{"stop", "-t"}, 2, []string{"--time needs a value"}},
			"another platform":      {[]string{"run", "--platform", "linux/s390x", "--pull", "never", "bb:1", "true"}, 125, []string{"bb:1", "not for linux/s390x"}},
			"own annotation":        {[]string{"run", "--annotation", "io.unionfs.name=x", "bb:1", "true"}, 125, []string{"io.unionfs.name"}},
			"rm of no network":      {[]string{"network", "rm", "brigde"}, 1, []string{"no such network", "unionfs network ls", `did you mean "bridge"?`}},
			"start of nothing":      {[]string{"start", "nowhere"}, 1, []string{"no such container", "unionfs ps -a"}},
			"top without PID":       {[]string{"top"}, 2, []string{"CONTAINER"}},
			"no image":              {[]string{"run"}, 125, []string{"IMAGE"}},
			"no command":            {[]string{"run", "bb:1"}, 125, []string{"no command"}},
			"nothing to try":        {[]string{"try"}, 125, []string{"COMMAND"}},
			"no such command":       {[]string{"run", "--rm", "bb:1", "nowhere"}, 127, []string{"nowhere"}},
			"no such file":          {[]string{"run", "--rm", "bb:1", "/bin/nowhere"}, 127, []string{"/bin/nowhere"}},
			"not executable":        {[]string{"run", "--rm", "bb:1", "/etc/passwd"}, 126, []string{"/etc/passwd"}},
			"a directory":           {[]string{"run", "--rm", "bb:1", "/etc"}, 126, []string{"/etc"}},
			"unknown user":          {[]string{"run", "--rm", "-u", "nobodyhere", "bb:1", "true"}, 125, []string{"nobodyhere"}},
			"bad volume":            {[]string{"run", "--rm", "-v", "/etc:etc", "bb:1", "true"}, 125, []string{"/etc:etc", "absolute"}},
			"missing volume source": {[]string{"run", "--rm", "-v", "/nowhere:/x", "bb:1", "true"}, 125, []string{"/nowhere", "does not exist"}},
			"bad network":           {[]string{"run", "--rm", "--network", "moon", "bb:1", "true"}, 125, []string{"moon"}},
			"missing env file":      {[]string{"run", "--rm", "--env-file", "nowhere", "bb:1", "true"}, 125, []string{"nowhere"}},
			"unknown flag":          {[]string{"run", "--shiny", "bb:1", "true"}, 125, []string{"shiny"}},
			"bad name":              {[]string{"run", "--name", "a b", "bb:1", "true"}, 125, []string{"a b"}},
			"diff of nothing":       {[]string{"diff", "nowhere"}, 1, []string{"no such container"}},
			"rm of nothing":         {[]string{"rm", "nowhere"}, 1, []string{"no such container"}},
			"rmi of nothing":        {[]string{"rmi", "nowhere"}, 1, []string{"no such image"}},
			"import as host":        {[]string{"import", "bb.tar", "host"}, 1, []string{"reserved"}},
			"import of no tar":      {[]string{"import", "/etc/passwd", "x:1"}, 1, []string{"x:1"}},
			"import of nothing":     {[]string{"import", "nowhere.tar", "x:1"}, 1, []string{"nowhere.tar"}},
			"unknown format":        {[]string{"ps", "--format", "xml"}, 2, []string{"xml"}},
		}
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				oneLine(t, c.try(t, test.args...), test.code, test.words...)
			})
		}
		if out := c.must(t, "ps", "-a", "-q"); out != "" {
			t.Errorf("containers are left: %q", out)
		}
		if out := c.must(t, "images", "-q"); strings.Count(out, "\n") != 1 {
			t.Errorf("images: %q", out)
		}
		checkEmpty(t, filepath.Join(c.root, "staging"), filepath.Join(c.root, "containers"))
	})
}

func checkEmpty(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("%s is left", filepath.Join(dir, e.Name()))
		}
	}
}

// TestLyingRegistry pulls images of which a blob is short, or other than its digest says.
func TestLyingRegistry(t *testing.T) {
	for name, spoil := range map[string]string{
		"truncated": `truncate -s -100 "$1"`,
		"changed":   `printf x | dd of="$1" bs=1 seek=1000 conv=notrunc 2>/dev/null`,
		"missing":   `rm "$1"`,
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaller(t, "root")
			dir := t.TempDir()
			registry := testimage.RegistryIn(t, dir)
			image := testimage.Busybox(t, v1.Config{})
			testimage.Push(t, image, registry+"/bb:1")
			layers, err := image.Layers()
			if err != nil {
				t.Fatal(err)
			}
			digest, err := layers[0].Digest()
			if err != nil {
				t.Fatal(err)
			}
			blob := filepath.Join(dir, "data/docker/registry/v2/blobs/sha256", digest.Hex[:2], digest.Hex, "data")
			if out, err := exec.Command("sh", "-c", spoil, "sh", blob).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			oneLine(t, c.try(t, "pull", "-q", registry+"/bb:1"), 1, registry+"/bb:1")
			if out := c.must(t, "images", "-q"); out != "" {
				t.Errorf("images: %q", out)
			}
			checkEmpty(t, filepath.Join(c.root, "staging"), filepath.Join(c.root, "images"), filepath.Join(c.root, "layers"))
		})
	}
}

// TestPoorMachines takes away what the program needs, in namespaces of the test's own.
func TestPoorMachines(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		// Before the caller gives up being root, in the same mount namespace.
		poor := func(t *testing.T, preparation string, args ...string) result {
			t.Helper()
			command := c.command(t, shared.unionfs, args...)
			for i, arg := range command.Args {
				if arg == asCaller {
					command.Args[i] = preparation + "\n" + asCaller
				}
			}
			return run(t, command)
		}
		c.script(t, "mkdir lower target")
		const noFuse = `mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3`
		t.Run("no /dev/fuse: mount", func(t *testing.T) {
			oneLine(t, poor(t, noFuse, "mount", "--lower", "lower", "target"), 1, "no /dev/fuse", "modprobe fuse")
		})
		t.Run("no /dev/fuse: run", func(t *testing.T) {
			oneLine(t, poor(t, noFuse, "run", "--rm", "bb:1", "true"), 125, "no /dev/fuse", "modprobe fuse")
		})
		t.Run("no disk space: import", func(t *testing.T) {
			full := `mkdir -p "$1/full" && mount -t tmpfs -o size=300k,mode=0777 tmpfs "$1/full"`
			oneLine(t, poor(t, full, "--root", filepath.Join(c.home, "full"), "import", "bb.tar", "bb:1"), 1, "no space left")
		})
		t.Run("no disk space: run", func(t *testing.T) {
			// The command gets the error, as on any full disk, and goes on.
			full := `cp -a "$1/state" "$1/small" && mkdir -p "$1/mnt" && mount -t tmpfs -o size=6m,mode=0777 tmpfs "$1/mnt" && cp -a "$1/small/." "$1/mnt/" && rm -rf "$1/small"`
			r := poor(t, full, "--root", filepath.Join(c.home, "mnt"), "run", "--rm", "bb:1", "sh", "-c",
				"dd if=/dev/zero of=/tmp/big bs=64k count=200 || { rm /tmp/big; echo still here > /tmp/small; cat /tmp/small; exit 3; }")
			if r.code != 3 || r.stdout != "still here\n" || !strings.Contains(r.stderr, "No space left on device") {
				t.Errorf("%+v", r)
			}
		})
		if c.uid == 0 {
			return
		}
		t.Run("no user namespaces", func(t *testing.T) {
			// The limit holds for the user namespace in which it is set and those below, so one is put between.
			// Leaving it with no capabilities is like having come there as an ordinary user.
			command := c.command(t, "unshare", "--user", "--map-root-user", "sh", "-c",
				`echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$UNIONFS" run --rm bb:1 true`)
			r := run(t, command)
			oneLine(t, r, 125, "user namespaces", "max_user_namespaces")
		})
	})
}
