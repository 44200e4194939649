package bench

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// tile is one comparison that the page and the document begin with.
type tile struct {
	Factor string // how many times as fast
	Peer   string // as whom
	What   string
	Detail string
	Class  string
}

// tiles lists those of the best-known comparisons that were measured.
func (r *Report) tiles() []tile {
	var tiles []tile
	for _, t := range []struct {
		what string
		of   query
		to   string
	}{
		{"walking an image of %d layers, cold", query{"walk", stateCold, 120, peerUnionfsImage}, peerOverlayfs},
		{"walking %d directories, cold", query{"walk", stateCold, 120, peerUnionfs}, peerOverlayfs},
		{"opening and reading files, warm, %d branches", query{"open-read", stateWarm, 120, peerUnionfs}, peerOverlayfs},
		{"appending 100 bytes at a time", query{"append", stateWarm, 10, peerUnionfs}, peerFuseOverlayfs},
		{"creating files", query{"create", stateWarm, 10, peerUnionfs}, peerFuseOverlayfs},
		{"writing one byte into a large lower file", query{"touch-big", stateWarm, 10, peerUnionfs}, peerOverlayfs},
		{"starting a container", query{"run", stateWarm, 0, peerUnionfs}, peerPodman},
		{"pulling an image of %d layers", query{"pull", "", 10, peerUnionfs}, peerPodman},
		{"committing a container", query{"commit", "", 10, peerUnionfs}, peerPodmanFuse},
	} {
		a := r.nearest(t.of)
		if a == nil {
			continue
		}
		b := r.find(a.Key, t.to)
		if b == nil || len(b.Values) == 0 {
			continue
		}
		what := t.what
		if strings.Contains(what, "%d") {
			what = fmt.Sprintf(what, a.Depth)
		}
		factor, class := b.Median()/a.Median(), "good"
		if factor < 1 {
			class = "bad"
		}
		tiles = append(tiles, tile{
			Factor: factorText(factor), Peer: r.peerTitle(t.to), What: what, Class: class,
			Detail: valueText(a.Median(), a.Unit) + " against " + valueText(b.Median(), b.Unit),
		})
	}
	return tiles
}

func factorText(factor float64) string {
	switch {
	case factor >= 1000:
		return fmt.Sprintf("%.0f×", math.Round(factor/100)*100)
	case factor >= 10:
		return fmt.Sprintf("%.0f×", factor)
	case factor >= 1:
		return fmt.Sprintf("%.1f×", factor)
	}
	return fmt.Sprintf("%.2f×", factor)
}

// peerTitle is what a peer is called in a sentence.
func (r *Report) peerTitle(name string) string {
	switch name {
	case peerOverlayfs:
		return "the kernel's overlayfs"
	case peerPodmanFuse:
		return "podman on fuse-overlayfs"
	case peerPlain:
		return "a plain directory"
	case peerHost:
		return "the host"
	}
	return name
}

// glanceRow is a section's geometric means of ratios, ours to a peer's.
type glanceRow struct {
	Title string
	Cells []pageCell
}

// glanceColumns are the pairs that are compared at a glance.
func glanceColumns() [][2]string {
	return [][2]string{
		{peerUnionfs, peerOverlayfs}, {peerUnionfs, peerFuseOverlayfs}, {peerUnionfsImage, peerOverlayfs}, {peerUnionfsImage, peerFuseOverlayfs},
	}
}

// glance compares whole sections of works.
func (r *Report) glance() []glanceRow {
	var rows []glanceRow
	for _, section := range []string{sectionCold, sectionWarm, sectionWrite} {
		row, any := glanceRow{Title: section}, false
		for _, pair := range glanceColumns() {
			sum, n := 0.0, 0
			for _, key := range r.keys() {
				if !key.ofUnions() || sectionOf(key) != section || key.Work == "mount" {
					continue
				}
				if ratio := r.ratio(key, pair[0], pair[1]); !math.IsNaN(ratio) && ratio > 0 {
					sum, n = sum+math.Log(ratio), n+1
				}
			}
			cell := pageCell{Value: "-"}
			if n > 0 {
				any = true
				mean := math.Exp(sum / float64(n))
				cell = pageCell{Value: ratioText(mean), Spread: fmt.Sprintf("of %d", n), Class: ratioClass(mean)}
			}
			row.Cells = append(row.Cells, cell)
		}
		if any {
			rows = append(rows, row)
		}
	}
	return rows
}

func ratioClass(ratio float64) string {
	switch {
	case ratio <= 0.95:
		return "good"
	case ratio >= 1.05:
		return "bad"
	}
	return ""
}

// behind is where a peer is ahead of one of ours.
type behind struct {
	Peer  string
	Ours  string
	Works []string // "walk, cold, 10 branches: 1.8×", the worst first
}

// List is the works in one sentence.
func (b behind) List() string { return strings.Join(b.Works, "; ") }

// peersAhead lists where peers take less time than ours, beyond the noise: all but a quarter of their runs take less than
// all but a quarter of ours, and the medians differ by a tenth at least.
func (r *Report) peersAhead() []behind {
	var all []behind
	for _, peer := range r.measuredPeers() {
		if peer == peerUnionfs || peer == peerUnionfsImage || peer == peerUnionfsHeld {
			continue
		}
		for _, own := range []string{peerUnionfs, peerUnionfsImage} {
			if works := r.worksAhead(peer, own); len(works) > 0 {
				all = append(all, behind{Peer: r.peerTitle(peer), Ours: own, Works: works})
			}
		}
	}
	return all
}

// worksAhead lists the works at which a peer is ahead of one of ours, each with the largest factor.
func (r *Report) worksAhead(peer, own string) []string {
	type work struct {
		at           Key // where the factor is largest
		factor       float64
		ahead, cases int
	}
	found := map[string]*work{}
	for _, key := range r.keys() {
		a, b := r.find(key, own), r.find(key, peer)
		if a == nil || b == nil || len(a.Values) == 0 || len(b.Values) == 0 {
			continue
		}
		w := found[key.Work+key.State]
		if w == nil {
			w = &work{}
			found[key.Work+key.State] = w
		}
		w.cases++
		lower, _ := a.Quartiles()
		_, upper := b.Quartiles()
		if factor := a.Median() / b.Median(); lower > upper && factor >= 1.1 {
			w.ahead++
			if factor > w.factor {
				w.at, w.factor = key, factor
			}
		}
	}
	works := slices.DeleteFunc(slices.Collect(maps.Values(found)), func(w *work) bool { return w.ahead == 0 })
	slices.SortFunc(works, func(a, b *work) int {
		return cmp.Or(cmp.Compare(b.factor, a.factor), strings.Compare(a.at.sentence(), b.at.sentence()))
	})
	var texts []string
	for _, w := range works {
		text := w.at.sentence() + ": " + ratioText(w.factor)
		if w.ahead < w.cases {
			text += fmt.Sprintf(" (ahead in %d of %d cases)", w.ahead, w.cases)
		}
		texts = append(texts, text)
	}
	return texts
}

// sentence names what was measured, for a sentence.
func (k Key) sentence() string {
	parts := []string{k.Work}
	if k.State == stateCold {
		parts = append(parts, "cold")
	}
	switch {
	case k.Bench == "copyup":
		parts = append(parts, humanSize(k.Param))
	case k.Bench == "memory":
		parts = append(parts, fmt.Sprintf("%d entries", k.Param))
	case k.Bench == "images":
		parts = append(parts, fmt.Sprintf("%d layers", k.Depth))
	case k.ofUnions():
		parts = append(parts, fmt.Sprintf("%d %s", k.Depth, plural(k.Depth, "branch", "branches")))
	}
	return strings.Join(parts, ", ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
