package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// writeEtcFiles writes hosts, hostname and resolv.conf to the container's directory and mounts them over the root's own,
// as Docker does: what names the host resolves by is the container's business, not the image's. A target that the
// specification mounts already is left alone. more are further lines for hosts.
func (c *Container) writeEtcFiles(more []string) error {
	host := c.Spec.Hostname
	if host == "" {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if host != "" && host != "localhost" {
		hosts += fmt.Sprintf("127.0.1.1\t%s\n", strings.TrimSpace(host+" "+c.Spec.Domainname))
	}
	for _, line := range more {
		hosts += line + "\n"
	}
	files := []struct{ name, content string }{
		{"hosts", hosts},
		{"hostname", host + "\n"},
		{"resolv.conf", string(resolv)},
	}
	for _, f := range files {
		target := "/etc/" + f.name
		if mountsAt(c.Spec, target) {
			continue
		}
		source := filepath.Join(c.Dir(), f.name)
		if err := os.WriteFile(source, []byte(f.content), 0o644); err != nil {
			return err
		}
		// The umask must not hide it from the container's other users.
		if err := os.Chmod(source, 0o644); err != nil {
			return err
		}
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{
			Destination: target, Type: "bind", Source: source, Options: []string{"bind", "rprivate"},
		})
	}
	return nil
}

func mountsAt(spec *specs.Spec, target string) bool {
	for _, m := range spec.Mounts {
		if filepath.Clean(m.Destination) == target {
			return true
		}
	}
	return false
}
