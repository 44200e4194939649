package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestHoldersProgram: the holder of a mount runs the small program that was built with unionfs, and unionfs itself where there is
// none, it is of another build, anybody may write to it, or it can't be executed. In all cases it starts servers though the programs
// were removed meanwhile, has them replaced by another program, and says why there is no mount.
func TestHoldersProgram(t *testing.T) {
	own, other := filepath.Join(shared.dir, "unionfs-holder"), filepath.Join(shared.dir, "other-holder")
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-buildid=other", "-o", other, "../cmd/unionfs-holder")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building a holder: %v\n%s", err, out)
	}
	const script = `
		programs() {
			mkdir programs
			install -m 0755 "$UNIONFS" programs/unionfs
			ln -s unionfs programs/fuse-overlayfs
			[ -z "$1" ] || install -m "$2" "$1" programs/unionfs-holder
		}
		outlive() { # the command line of holder and server
			rm -r programs
			holder=$(pgrep -u $(id -u) -o -f "$1")
			echo "the holder $(cat /proc/$holder/comm) runs $(readlink /proc/$holder/exe | sed 's|.*/||')"
			echo "the server runs $(readlink /proc/$(pgrep -P $holder)/exe | sed 's|.*/||')"
			! tr '\0' '\n' </proc/$(pgrep -P $holder)/environ | grep _UNIONFS_HOLD=
			for process in $holder $(pgrep -P $holder); do # only the holder needs the program open
				echo "$(readlink /proc/$process/fd/* | grep -c /programs/) of its descriptors are programs"
			done
			kill -9 $(pgrep -P $holder)
			cat merged/file
			"$UNIONFS" upgrade merged
			[ /proc/$(pgrep -P $holder)/exe -ef "$UNIONFS" ]
			kill -9 $(pgrep -P $holder)
			cat merged/file
			"$UNIONFS" umount merged
		}
		mkdir lower merged
		echo content >lower/file
		programs "$@"
		programs/unionfs mount --lower missing merged 2>&1 || echo "exit code $?"
		programs/unionfs mount --lower lower merged
		outlive '[r]eady-fd 3 --lower lower merged'
		programs "$@"
		programs/fuse-overlayfs -o lowerdir=missing merged 2>&1 || echo "exit code $?"
		programs/fuse-overlayfs -o lowerdir=lower merged
		outlive '[s]erve-overlay -o lowerdir=lower merged'`
	for _, beside := range []struct {
		name string
		args []string // what becomes unionfs-holder, and its mode
		runs string   // what the holder runs
	}{
		{"of the same build", []string{own, "0755"}, "unionfs-holder"},
		{"none", []string{""}, "unionfs"},
		{"of another build", []string{other, "0755"}, "unionfs"},
		{"for everybody to write to", []string{own, "0757"}, "unionfs"},
		{"not to be executed", []string{own, "0644"}, "unionfs"},
	} {
		t.Run(beside.name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, c *caller) {
				got := c.script(t, script, beside.args...)
				outlived := "the holder unionfs runs " + beside.runs + " (deleted)\nthe server runs unionfs (deleted)\n" +
					"1 of its descriptors are programs\n0 of its descriptors are programs\ncontent\ncontent\n"
				want := "unionfs: mounting " + c.home + "/merged: branch " + c.home + "/missing doesn't exist\nexit code 1\n" + outlived +
					"fuse-overlayfs: branch missing doesn't exist\nexit code 1\n" + outlived
				if got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			})
		})
	}
}
