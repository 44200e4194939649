package holder_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/holder"
)

// withFirst is a change of a holder's configuration: the process itself is a server already, and stops by leave.
func withFirst(t *testing.T, leave func() error) func(*holder.Config) {
	return func(c *holder.Config) {
		device, err := os.OpenFile(filepath.Join(c.Args[1], "device"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.First = &holder.First{
			Kept:  holder.Kept{Files: []*os.File{device}, Data: []byte("settings")},
			Ended: make(chan struct{}), Leave: leave,
		}
		c.Questions = holder.NewQuestions()
	}
}

// TestChildTakesFirstsPlace has a child take the place of a server in the holder's process, and be replaced itself. It answers
// questions, and the next one those that it was killed over.
func TestChildTakesFirstsPlace(t *testing.T) {
	var left atomic.Int32
	var questions *holder.Questions
	w := newWorld(t, "live", func(c *holder.Config) {
		withFirst(t, func() error { left.Add(1); return nil })(c)
		questions = c.Questions
	})
	first := w.last(t, 1)
	for question, want := range map[string]string{"who": "who, again false", "die": "die, again true"} {
		if got, err := questions.Ask([]byte(question)); err != nil || string(got) != want {
			t.Errorf("the answer is %q, %v; want %q", got, err, want)
		}
	}
	second := w.last(t, 2)
	if second == first || left.Load() != 1 {
		t.Errorf("the servers are %d and %d; the first server left %d times", first, second, left.Load())
	}
	_ = w.end(t, second)
	if _, err := questions.Ask([]byte("who")); err != holder.ErrEnded {
		t.Errorf("when the mount was gone: %v", err)
	}
}

// TestFirstGoesOn is about children that can't take the place of the server in the holder's process: what it has stays its own.
func TestFirstGoesOn(t *testing.T) {
	gone := errors.New("it is gone")
	for name, c := range map[string]struct {
		prepare func(t *testing.T, c *holder.Config)
		want    func(error) bool
	}{
		"the child refuses": {func(t *testing.T, c *holder.Config) {
			if err := os.WriteFile(filepath.Join(c.Args[1], "refuse"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, func(err error) bool {
			var ended *holder.ExitError
			return errors.As(err, &ended) && strings.Contains(ended.Reason, "the journal is of another version")
		}},
		"the mount goes": {func(_ *testing.T, c *holder.Config) {
			ended := make(chan struct{})
			close(ended)
			c.First.Ended = ended
		}, func(err error) bool { return err == holder.ErrEnded }},
		"it can't leave": {func(_ *testing.T, c *holder.Config) { c.First.Leave = func() error { return gone } },
			func(err error) bool { return err == gone }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mkfifo(filepath.Join(dir, "device"), 0o600); err != nil {
				t.Fatal(err)
			}
			reader, err := os.OpenFile(filepath.Join(dir, "device"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			program, err := os.Open("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			config := holder.Config{Program: program, Args: []string{"serve", dir, "live"}, Embedded: true}
			withFirst(t, func() error { t.Error("it left"); return nil })(&config)
			c.prepare(t, &config)
			if err := holder.Run(config); !c.want(err) {
				t.Errorf("the holder says %v", err)
			}
			if err := config.First.Kept.Files[0].Close(); err != nil {
				t.Errorf("the descriptor is not its own any more: %v", err)
			}
			if starts, err := os.ReadFile(filepath.Join(dir, "starts")); err == nil {
				t.Errorf("there was another server: %s", starts)
			}
		})
	}
}
