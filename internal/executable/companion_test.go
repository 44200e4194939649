package executable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestBuildID(t *testing.T) {
	if id := buildID(Self); id == "" {
		t.Error("this program, which Go has built, has no build ID")
	}
	for name, content := range map[string]string{
		"empty": "", "short": "\x04\x00\x00\x00Go", "no header": "\x04\x00\x00\x00Go\x00\x00id",
		"long": "\x04\x00\x00\x00\xff\xff\x00\x00\x04\x00\x00\x00Go\x00\x00id",
	} {
		file := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if id := buildID(file); id != "" {
			t.Errorf("%s: %q", name, id)
		}
	}
}
