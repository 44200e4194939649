package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// figure is one plot: values of several peers, over a parameter or for one value of it.
type figure struct {
	id       string // also the name of its SVG file
	title    string
	subtitle string
	section  string
	xTitle   string
	unit     string
	xs       []float64 // the parameter's values, ascending
	xText    func(float64) string
	series   []series
}

// series is one peer's line or bar.
type series struct {
	peer   string
	points []point
}

type point struct {
	x, median, lower, upper float64
}

// Titles of the page's sections, in its order.
const (
	sectionRatio      = "The number of branches: ratios to the kernel's overlayfs"
	sectionCold       = "Reading, caches dropped"
	sectionWarm       = "Reading, caches filled"
	sectionWrite      = "Writing"
	sectionContainers = "Containers and images"
)

func sections() []string {
	return []string{sectionRatio, sectionCold, sectionWarm, sectionWrite, sectionContainers}
}

// figures returns the report's plots: one for each work and state, in the order of the works.
func (r *Report) figures() []figure {
	type family struct{ bench, work, state string }
	var order []family
	keys := map[family][]Key{}
	for _, key := range r.keys() {
		f := family{key.Bench, key.Work, key.State}
		if keys[f] == nil {
			order = append(order, f)
		}
		keys[f] = append(keys[f], key)
	}
	var figures []figure
	for _, f := range order {
		if made := r.figureOf(keys[f]); len(made.series) > 0 {
			figures = append(figures, made)
			if ratios := r.ratioFigure(made, keys[f]); len(ratios.series) > 1 {
				figures = append(figures, ratios)
			}
		}
	}
	slices.SortStableFunc(figures, func(a, b figure) int {
		return cmp.Compare(slices.Index(sections(), a.section), slices.Index(sections(), b.section))
	})
	return figures
}

// figureOf makes the plot of keys that differ in depth or parameter only.
func (r *Report) figureOf(keys []Key) figure {
	first := keys[0]
	f := figure{
		id:      strings.Trim(strings.Join([]string{first.Bench, first.Work, first.State}, "-"), "-"),
		title:   first.Work,
		section: sectionOf(first),
		xTitle:  "branches",
		xText:   func(x float64) string { return fmt.Sprint(int64(x)) },
	}
	if first.State != "" {
		f.title += ", " + first.State
	}
	switch first.Bench {
	case "files":
		f.title += ", large tree"
	case "copyup":
		f.xTitle, f.xText = "size of the file", func(x float64) string { return humanSize(int64(x)) }
	case "memory", "takeover":
		f.xTitle = "entries of the tree"
	case "images":
		f.xTitle = "layers"
	}
	for _, key := range keys {
		f.xs = append(f.xs, key.x())
	}
	slices.Sort(f.xs)
	for _, peer := range r.measuredPeers() {
		s := series{peer: peer}
		for _, key := range keys {
			m := r.find(key, peer)
			if m == nil || len(m.Values) == 0 {
				continue
			}
			f.unit = m.Unit
			if f.subtitle == "" {
				f.subtitle = r.describe(key, m.Ops)
			}
			lower, upper := m.Quartiles()
			s.points = append(s.points, point{key.x(), m.Median(), lower, upper})
		}
		slices.SortFunc(s.points, func(a, b point) int { return cmp.Compare(a.x, b.x) })
		if len(s.points) > 0 {
			f.series = append(f.series, s)
		}
	}
	if len(f.xs) == 1 && first.ofUnions() {
		f.subtitle += fmt.Sprintf("; %d branches", first.Depth)
	}
	return f
}

// unitRatio is the unit of ratios.
const unitRatio = "×"

// ratioFigure makes a plot of ratios to overlayfs of one of times over numbers of branches. It has no lines if there is no
// overlayfs, or there are fewer than three numbers.
func (r *Report) ratioFigure(f figure, keys []Key) figure {
	if len(f.xs) < 3 || !keys[0].ofUnions() || keys[0].Work == "mount" {
		return figure{}
	}
	ratios := f
	ratios.id, ratios.section, ratios.unit, ratios.series = "ratio-"+f.id, sectionRatio, unitRatio, nil
	ratios.subtitle = f.subtitle + "; overlayfs is 1"
	for _, s := range f.series {
		made := series{peer: s.peer}
		for _, at := range s.points {
			i := slices.IndexFunc(keys, func(k Key) bool { return k.x() == at.x })
			base := r.find(keys[i], peerOverlayfs)
			if base == nil || len(base.Values) == 0 {
				continue
			}
			by := base.Median()
			made.points = append(made.points, point{at.x, at.median / by, at.lower / by, at.upper / by})
		}
		if len(made.points) > 1 {
			ratios.series = append(ratios.series, made)
		}
	}
	return ratios
}

// x is the parameter that plots have on their horizontal axis.
func (k Key) x() float64 {
	if k.Param != 0 {
		return float64(k.Param)
	}
	return float64(max(k.Depth, 1))
}

// ofUnions reports whether the measurement is one of Depth.
func (k Key) ofUnions() bool {
	return slices.Contains([]string{"depth", "files", "programs", "big", benchHolder, benchHolderCPU}, k.Bench)
}

func sectionOf(key Key) string {
	if !key.ofUnions() && key.Bench != "copyup" {
		return sectionContainers
	}
	if key.State == stateCold {
		return sectionCold
	}
	if key.Bench == "copyup" || slices.ContainsFunc(works(), func(w *work) bool { return w.name == key.Work && w.writes }) {
		return sectionWrite
	}
	return sectionWarm
}

// describe says what a work does.
func (r *Report) describe(key Key, ops int) string {
	for _, w := range works() {
		if !key.ofUnions() || w.name != key.Work {
			continue
		}
		about := w.about
		if strings.Contains(about, "%d") {
			about = fmt.Sprintf(about, ops)
		}
		switch w.name {
		case "seqread", "touch-big", "beside-copyup":
			about += " (" + humanSize(r.Sizes.Big) + ")"
		case "git-status":
			about += fmt.Sprintf(" (%d files)", r.Sizes.Tracked)
		case "build":
			about += fmt.Sprintf(" (%d files)", r.Sizes.Sources)
		case "seqwrite":
			about += " (" + humanSize(r.Sizes.Write) + ")"
		}
		return about
	}
	return aboutOther(key)
}

// isLine reports whether the figure is a plot over its parameter, and not bars.
func (f *figure) isLine() bool { return len(f.xs) > 1 }

// logTicks returns round values from the one at or below low to the one at or above high: powers of ten, with 2 and 5
// times those where there would be fewer than three.
func logTicks(low, high float64) []float64 {
	for _, steps := range [][]float64{{1}, {1, 3}, {1, 2, 5}} {
		var ticks []float64
		for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
			for _, step := range steps {
				if v := step * math.Pow(10, e); v >= low*0.999 && v <= high*1.001 {
					ticks = append(ticks, v)
				}
			}
		}
		if len(ticks) >= 3 {
			return ticks
		}
	}
	return []float64{low, high}
}
