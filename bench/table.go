package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

var nan = math.NaN()

// WriteTable writes a table for people: what was measured in lines, peers in columns, medians with half the distance of
// their quartiles, and the ratio to the first of overlayfs,
// fuse-overlayfs, podman and the host that was measured.
func (r *Report) WriteTable(w io.Writer) error {
	bench := ""
	var peers []string
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, key := range r.keys() {
		if key.Bench != bench {
			if bench != "" { // columns of different tables needn't align
				fmt.Fprintln(out)
				if err := out.Flush(); err != nil {
					return err
				}
			}
			bench, peers = key.Bench, r.peersOf(key.Bench)
			fmt.Fprintln(out, strings.Join(append([]string{"WORK", "STATE", paramTitle(bench)}, peers...), "\t"))
		}
		cells := []string{key.Work, key.State, key.paramText()}
		for _, peer := range peers {
			cells = append(cells, r.cell(key, peer))
		}
		fmt.Fprintln(out, strings.Join(cells, "\t"))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for _, line := range r.footnotes() {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// footnotes says who could not be measured and why, and what else the reader must know.
func (r *Report) footnotes() []string {
	lines := []string{"", "Median of the runs ± half the distance of their quartiles; in brackets the ratio to " + r.baselineNames() + "."}
	for _, p := range r.Peers {
		if p.Missing != "" {
			lines = append(lines, p.Name+": "+p.Missing)
		}
	}
	lines = append(lines, r.reasons()...)
	lines = append(lines, r.Notes...)
	if r.Interrupted {
		lines = append(lines, "Interrupted: this is what was measured until then.")
	}
	return lines
}

// reasons says why figures are missing, each reason once.
func (r *Report) reasons() []string {
	var order []string
	works := map[string][]string{}
	for _, m := range r.Measurements {
		if m.Status == "" {
			continue
		}
		reason := m.Peer + "\x00" + m.Status
		if works[reason] == nil {
			order = append(order, reason)
		}
		if what := strings.TrimSpace(m.State + " " + m.Work); !slices.Contains(works[reason], what) {
			works[reason] = append(works[reason], what)
		}
	}
	var lines []string
	for _, reason := range order {
		peer, status, _ := strings.Cut(reason, "\x00")
		lines = append(lines, fmt.Sprintf("%s: %s (%s)", peer, status, strings.Join(works[reason], ", ")))
	}
	return lines
}

func (r *Report) baselineNames() string {
	return "overlayfs, or, where that wasn't measured, to fuse-overlayfs or podman; for volumes to the host's own file system, for a holder to a mount beside it that has none"
}

func paramTitle(bench string) string {
	switch bench {
	case "copyup":
		return "FILE"
	case "memory", "takeover":
		return "ENTRIES"
	case "images":
		return "LAYERS"
	case "run", "volume":
		return "NUMBER"
	}
	return "BRANCHES"
}

func (k Key) paramText() string {
	switch {
	case k.Bench == "copyup":
		return humanSize(k.Param)
	case k.Bench == "memory", k.Bench == "takeover":
		return fmt.Sprint(k.Param)
	case k.Param != 0:
		return fmt.Sprint(k.Param)
	case k.Depth == 0:
		return "-"
	}
	return fmt.Sprint(k.Depth)
}

// cell is one figure with its spread and ratio, or why there is none.
func (r *Report) cell(key Key, peer string) string {
	m := r.find(key, peer)
	if m == nil {
		return "-"
	}
	if len(m.Values) == 0 {
		return shortStatus(m.Status)
	}
	text := valueText(m.Median(), m.Unit)
	if lower, upper := m.Quartiles(); upper > lower {
		text += " ±" + valueText((upper-lower)/2, m.Unit)
	}
	if ratio := r.toBaseline(key, peer); !math.IsNaN(ratio) {
		text += fmt.Sprintf(" (%s)", ratioText(ratio))
	}
	return text
}

// toBaseline returns the ratio to what footnotes says.
func (r *Report) toBaseline(key Key, peer string) float64 {
	if p, ok := r.paired(key, peer, peerUnionfs); ok && slices.Contains([]string{benchHolder, benchHolderCPU}, key.Bench) {
		if peer == peerUnionfs {
			return nan
		}
		return p.median
	}
	if key.Bench == "volume" {
		if peer == peerHost {
			return nan
		}
		return r.ratio(key, peer, peerHost)
	}
	for _, baseline := range []string{peerOverlayfs, peerFuseOverlayfs, peerPodman} {
		if m := r.find(key, baseline); m != nil && len(m.Values) > 0 {
			if peer == baseline {
				return nan
			}
			return r.ratio(key, peer, baseline)
		}
	}
	return nan
}

// shortStatus fits a column; the footnotes have the whole.
func shortStatus(status string) string {
	switch {
	case strings.HasPrefix(status, "takes longer"):
		return "too long"
	case strings.HasPrefix(status, "it has no"), strings.HasPrefix(status, "for reading"):
		return "-"
	case strings.HasPrefix(status, "fails"):
		return "fails"
	case strings.HasPrefix(status, "it shows another tree"):
		return "wrong tree"
	case status == "":
		return "-"
	}
	return "can't"
}

func ratioText(ratio float64) string {
	if ratio >= 10 {
		return fmt.Sprintf("%.0f×", ratio)
	}
	return fmt.Sprintf("%.2f×", ratio)
}

// valueText writes a value with three digits.
func valueText(v float64, unit string) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case unit == unitRatio:
		return ratioText(v)
	case unit == "B":
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case v >= 1:
		return fmt.Sprintf("%.3g s", v)
	case v >= 1e-3:
		return fmt.Sprintf("%.3g ms", v*1e3)
	}
	return fmt.Sprintf("%.3g µs", v*1e6)
}
