package testimage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Kernel returns the file of a Debian kernel for virtual machines. The first call on a machine fetches its package by apt,
// and unpacks it without installing it.
func Kernel(t testing.TB) string {
	t.Helper()
	meta := "linux-image-cloud-" + goarch()
	dir := cached(t, meta, func(dir string) error {
		out, err := exec.Command("apt-cache", "depends", meta).CombinedOutput()
		if err != nil {
			return fmt.Errorf("apt-cache: %w\n%s", err, out)
		}
		name := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
		if name == nil {
			return fmt.Errorf("apt knows no kernel %s:\n%s", meta, out)
		}
		fetch := exec.Command("sh", "-ec", `apt-get -q download -o APT::Sandbox::User=root "$1" && dpkg-deb -x linux-image-*.deb tree && mv tree/boot/vmlinuz-* vmlinuz && rm -r tree linux-image-*.deb`, "sh", string(name[1]))
		fetch.Dir = dir
		if out, err := fetch.CombinedOutput(); err != nil {
			return fmt.Errorf("fetching %s: %w\n%s", name[1], err, out)
		}
		_, err = os.Stat(filepath.Join(dir, "vmlinuz"))
		return err
	})
	return filepath.Join(dir, "vmlinuz")
}
