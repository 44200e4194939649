package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFull runs the smallest set as a user does, and looks at everything that it makes.
func TestFull(t *testing.T) {
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "report")
	var stdout, stderr bytes.Buffer
	command := exec.Command(program, "bench", "full", "--small", "--dir", dir, "--out", out)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	assertNothingLeft(t, dir)

	r, err := ReadReport(filepath.Join(out, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Notes) > 0 {
		t.Errorf("something went wrong: %q", r.Notes)
	}
	for _, p := range r.Peers {
		if p.Missing != "" {
			t.Errorf("%s wasn't measured: %s", p.Name, p.Missing)
		}
	}
	for _, m := range r.Measurements {
		if len(m.Values) == 0 && m.Status == "" {
			t.Errorf("%s %+v has neither values nor a reason", m.Peer, m.Key)
		}
		for _, v := range m.Values {
			if !(v > 0) {
				t.Errorf("%s %+v took %v", m.Peer, m.Key, v)
			}
		}
	}
	assertMeasured(t, r)
	if len(r.Times) != len(FullPartNames()) {
		t.Errorf("%d of %d parts say how long they took", len(r.Times), len(FullPartNames()))
	}
	for _, took := range r.Times {
		if !(took.Rounds > 0) || !strings.Contains(stderr.String(), took.String()) {
			t.Errorf("%+v, but the log says\n%s", took, &stderr)
		}
	}
	table := stdout.String()
	for _, want := range slices.Concat(WorkNames(), PeerNames(), ToolNames()) {
		if !strings.Contains(table, want) {
			t.Errorf("the table has no %s", want)
		}
	}
	lines, err := os.ReadFile(filepath.Join(out, "report.csv"))
	if err != nil {
		t.Fatal(err)
	}
	values := 0
	for _, m := range r.Measurements {
		values += len(m.Values)
	}
	if got := bytes.Count(lines, []byte("\n")); got <= values {
		t.Errorf("report.csv has %d lines for %d values", got, values)
	}
	t.Run("document", func(t *testing.T) { testDocument(t, r) })
	t.Run("page", func(t *testing.T) { testPage(t, out, r) })
}

// assertMeasured checks that unionfs, and every peer that can, was measured at all there is.
func assertMeasured(t *testing.T, r *Report) {
	t.Helper()
	for _, w := range works() {
		for _, name := range PeerNames() {
			p, err := newPeer(name, program)
			if err != nil {
				t.Fatal(err)
			}
			state := stateWarm
			if w.coldOnly {
				state = stateCold
			}
			i := slices.IndexFunc(r.Measurements, func(m Measurement) bool {
				return m.ofUnions() && m.Work == w.name && m.State == state && m.Peer == name
			})
			switch {
			case i < 0:
				t.Errorf("%s %s %s wasn't measured", name, w.name, state)
			case p.unable(w) == "" && len(r.Measurements[i].Values) == 0:
				t.Errorf("%s %s %s has no values: %s", name, w.name, state, r.Measurements[i].Status)
			}
		}
	}
	for _, m := range r.Measurements {
		// Whether a daemon runs depends on more of the machine than what is installed.
		if !m.ofUnions() && len(m.Values) == 0 && !strings.Contains(m.Status, "doesn't run here") {
			t.Errorf("%s %s %s has no values: %s", m.Peer, m.Bench, m.Work, m.Status)
		}
	}
	for _, bench := range []string{"copyup", "memory", "run", "images", "volume", "holder"} {
		if !slices.Contains(r.peersOf(bench), peerUnionfs) {
			t.Errorf("unionfs wasn't measured by %s", bench)
		}
	}
	for _, goal := range r.goals() {
		// That one is of a million files.
		if goal.Measured == "" && !strings.HasPrefix(goal.What, "Memory for each node") {
			t.Errorf("nothing measures the goal %q", goal.What)
		}
	}
}

// testDocument makes the document of a report, all of whose plots must be there.
func testDocument(t *testing.T, r *Report) {
	dir := t.TempDir()
	if err := r.WriteDocument(dir); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for _, part := range strings.Split(string(content), "](bench/")[1:] {
		name, _, _ := strings.Cut(part, ")")
		if _, err := os.Stat(filepath.Join(dir, "bench", name)); err != nil {
			t.Error(err)
		}
		links++
	}
	if links < 8 {
		t.Errorf("the document has %d links", links)
	}
	for _, want := range []string{"## Goals", "## Where peers are ahead", "| walk-parallel |", "| commit |", "fuse-overlayfs: version"} {
		if !strings.Contains(string(content), want) {
			t.Errorf("the document lacks %q", want)
		}
	}
}

// TestInterrupt ends a benchmark in its midst: everything is unmounted, and what was measured is shown.
func TestInterrupt(t *testing.T) {
	dir := t.TempDir()
	command := exec.Command(program, "bench", "depth", "--depths", "1,2", "--entries", "200", "--runs", "1000", "--work", "walk",
		"--warm", "--against", "overlayfs,fuse-overlayfs", "--dir", dir)
	var stdout bytes.Buffer
	command.Stdout = &stdout
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Process.Kill()
	progress := bufio.NewReader(stderr)
	for {
		line, err := progress.ReadString('\n')
		if err != nil {
			t.Fatalf("it ended before it could be interrupted: %v", err)
		}
		if strings.Contains(line, "run 3 of") {
			break
		}
	}
	if err := command.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(progress)
	if err := command.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, rest)
	}
	if text := stdout.String(); !strings.Contains(text, "walk") || !strings.Contains(text, "Interrupted") {
		t.Errorf("it doesn't say what was measured and that it was interrupted:\n%s", text)
	}
	assertNothingLeft(t, dir)
}

// assertNothingLeft checks that no mount, server or file is left in a directory. The servers of mounts that are gone may take a moment
// to end.
func assertNothingLeft(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("something is still mounted in %s", dir)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		t.Errorf("%s was left", filepath.Join(dir, entry.Name()))
	}
	var running []string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		running = nil
		for _, process := range processes {
			line, err := os.ReadFile(process)
			if err == nil && bytes.Contains(line, []byte(dir)) {
				running = append(running, fmt.Sprintf("process %s: %q", filepath.Base(filepath.Dir(process)), line))
			}
		}
		if len(running) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, process := range running {
		t.Errorf("still running: %s", process)
	}
}
