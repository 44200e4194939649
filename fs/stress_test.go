package fs_test

import (
	"flag"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"unionfs/internal/modeltest"
)

var stressFor = flag.Duration("stress", 0, "how long TestStress runs each stressor of stress-ng's class filesystem, one after the other; without it all of them at once, for some seconds")

// TestStress runs the file system class of stress-ng in a directory of a lower branch, and fails if one of its checks does. What
// FUSE doesn't have is left out, and "io", which calls syncfs for every mount of the machine: the kernel reports there that somebody
// was killed while it told the server of a file's times (fuse_flush_times, EINTR), as stress-ng kills its own when the time is over.
func TestStress(t *testing.T) {
	rng := modeltest.NewRand(t)
	s := newStack(t, rng, 2)
	for _, dir := range []string{s.lower[0], s.lower[1]} {
		mkdir(t, dir+"/stressed")
	}
	s.mount(t)
	args := []string{"--class", "filesystem", "--exclude", "binderfs,fiemap,io,verity", "--temp-path", s.mnt + "/stressed", "--verify"}
	if *stressFor > 0 {
		args = append(args, "--sequential", "1", "--timeout", strconv.Itoa(int(stressFor.Seconds())))
	} else {
		args = append(args, "--all", "1", "--timeout", "3")
	}
	out, err := exec.Command("stress-ng", args...).CombinedOutput()
	if failures := regexp.MustCompile(`(?m)^.*\bfail:.*$`).FindAll(out, -1); err != nil || len(failures) > 0 {
		t.Errorf("stress-ng: %v\n%s", err, out)
	}
}
