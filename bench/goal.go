package bench

import (
	"fmt"
	"math"
)

// goalRow is what unionfs is to reach beside what was measured.
type goalRow struct {
	Section  string
	What     string
	ToReach  string
	Measured string // "" if it wasn't
	Class    string // good or bad, "" if it wasn't measured
}

// query finds a measurement. Reports differ in numbers of branches and sizes, so the nearest there is counts.
type query struct {
	work, state string
	near        int64 // the number of branches, or the parameter
	peer        string
}

// nearest returns what the query asks for, or nil. What the holder benchmark does is the same works, but few of each.
func (r *Report) nearest(q query) *Measurement {
	var best *Measurement
	distance := math.Inf(1)
	for i := range r.Measurements {
		m := &r.Measurements[i]
		if m.Work != q.work || m.State != q.state || m.Peer != q.peer || m.Bench == benchHolder || m.Bench == benchHolderCPU || len(m.Values) == 0 {
			continue
		}
		if d := math.Abs(math.Log(m.x() / float64(max(q.near, 1)))); d < distance {
			best, distance = m, d
		}
	}
	return best
}

// elsewhere says at what number of branches something was measured, if that isn't what was asked for.
func (q query) elsewhere(m *Measurement) string {
	if q.near == 0 || m.x() == float64(q.near) {
		return ""
	}
	return "; at " + m.paramText()
}

// goalTable collects rows.
type goalTable struct {
	r       *Report
	section string
	rows    []goalRow
}

func (g *goalTable) add(what, toReach string, value, limit float64, text string) {
	row := goalRow{Section: g.section, What: what, ToReach: toReach}
	if !math.IsNaN(value) {
		row.Measured, row.Class = text, "good"
		if value > limit {
			row.Class = "bad"
		}
	}
	g.rows = append(g.rows, row)
}

// ratio adds a goal for the ratio to a peer.
func (g *goalTable) ratio(what string, q query, limit float64, to string) {
	g.between(what, q, query{q.work, q.state, q.near, to}, limit, fmt.Sprintf("≤ %g of %s", limit, to))
}

// between adds one for the ratio of any two figures. Both are of the same numbers of branches and sizes, unless the queries
// want different ones; then a report must have two that are far apart.
func (g *goalTable) between(what string, of, to query, limit float64, toReach string) {
	a := g.r.nearest(of)
	if a == nil {
		g.add(what, toReach, nan, limit, "")
		return
	}
	var b *Measurement
	if of.near == to.near {
		key := a.Key
		key.Work = to.work
		b = g.r.find(key, to.peer)
	} else if b = g.r.nearest(to); b != nil && a.x() < 10*b.x() {
		b = nil
	}
	if b == nil || len(b.Values) == 0 {
		g.add(what, toReach, nan, limit, "")
		return
	}
	value := a.Median() / b.Median()
	text := fmt.Sprintf("%s (%s to %s%s)", ratioText(value), valueText(a.Median(), a.Unit), valueText(b.Median(), b.Unit), of.elsewhere(a))
	g.add(what, toReach, value, limit, text)
}

// value adds a goal for a figure itself.
func (g *goalTable) value(what string, q query, limit float64, toReach string) {
	value, text := nan, ""
	if m := g.r.nearest(q); m != nil {
		value, text = m.Median(), valueText(m.Median(), m.Unit)+q.elsewhere(m)
	}
	g.add(what, toReach, value, limit, text)
}

// goals lists what unionfs is to reach. They were set before it was written, from measurements of prototypes and peers.
func (r *Report) goals() []goalRow {
	g := &goalTable{r: r}
	r.readingGoals(g)
	r.writingGoals(g)
	r.programGoals(g)
	r.depthGoals(g)
	r.imageGoals(g)
	r.containerGoals(g)
	r.takeoverGoals(g)
	return g.rows
}

func (r *Report) readingGoals(g *goalTable) {
	g.section = "Reading"
	g.ratio("Cold walk with stat, 120 directories", query{"walk", stateCold, 120, peerUnionfs}, 0.6, peerOverlayfs)
	g.ratio("Cold walk with stat, image of 120 layers", query{"walk", stateCold, 120, peerUnionfsImage}, 0.1, peerOverlayfs)
	g.ratio("Cold walk and reading 4,000 files, image of 10 layers", query{"walk-read", stateCold, 10, peerUnionfsImage}, 0.7, peerOverlayfs)
	for _, peer := range []struct{ name, of string }{{peerUnionfs, "directories"}, {peerUnionfsImage, "image"}} {
		g.ratio("Warm walk, 120 branches, "+peer.of, query{"walk", stateWarm, 120, peer.name}, 1, peerOverlayfs)
		g.ratio("Warm open, read and close of 4,000 files, 10 branches, "+peer.of, query{"open-read", stateWarm, 10, peer.name}, 0.7, peerOverlayfs)
		g.ratio("Stat of 4,000 files, second time, 10 branches, "+peer.of, query{"stat", stateWarm, 10, peer.name}, 1.1, peerOverlayfs)
		g.ratio("4,000 missing names, first time, 120 branches, "+peer.of, query{"negative", stateWarm, 120, peer.name}, 0.2, peerOverlayfs)
		g.ratio("Cold sequential read of a large file, "+peer.of, query{"seqread", stateCold, 10, peer.name}, 1.2, peerOverlayfs)
		g.ratio("Warm sequential read of a large file, "+peer.of, query{"seqread", stateWarm, 10, peer.name}, 1, peerOverlayfs)
		g.ratio("Cold random reads of 4 KiB, "+peer.of, query{"randread", stateCold, 10, peer.name}, 1.2, peerOverlayfs)
	}
	g.between("Cold walk by 8 at once against one, 10 branches", query{"walk-parallel", stateCold, 10, peerUnionfs},
		query{"walk", stateCold, 10, peerUnionfs}, 1/1.6, "≥ 1.6 times as fast on 2 CPUs (≤ 0.63)")
}

func (r *Report) writingGoals(g *goalTable) {
	g.section = "Writing"
	g.ratio("Create, write 4 KiB, close: 2,000 files", query{"create", stateWarm, 10, peerUnionfs}, 0.5, peerFuseOverlayfs)
	g.ratio("Rename 2,000 files", query{"rename", stateWarm, 10, peerUnionfs}, 0.6, peerFuseOverlayfs)
	g.ratio("Remove 2,000 files", query{"unlink", stateWarm, 10, peerUnionfs}, 0.6, peerFuseOverlayfs)
	g.ratio("20,000 appends of 100 bytes", query{"append", stateWarm, 10, peerUnionfs}, 1.3, peerOverlayfs)
	g.ratio("Sequential write of 256 MiB", query{"seqwrite", stateWarm, 10, peerUnionfs}, 1.5, peerOverlayfs)
	g.ratio("Remove 1,000 lower files", query{"delete", stateWarm, 10, peerUnionfs}, 0.3, peerFuseOverlayfs)
	g.ratio("Chmod of 1,000 lower files", query{"chmod", stateWarm, 10, peerUnionfs}, 0.3, peerOverlayfs)
	g.value("One byte into a lower file of 1 GiB, no reflinks", query{"touch-big", stateWarm, 10, peerUnionfs}, 0.010, "≤ 10 ms")
	g.ratio("Small works beside that", query{"beside-copyup", stateWarm, 10, peerUnionfs}, 1.1, peerOverlayfs)
}

func (r *Report) programGoals(g *goalTable) {
	g.section = "Programs"
	for _, work := range []struct{ name, what string }{
		{"git-status", "git status of a large work tree"}, {"tar", "tar -c of the root, warm"}, {"build", "gcc build of 300 files"},
	} {
		ours := query{work.name, stateWarm, 10, peerUnionfs}
		g.ratio(work.what, ours, 1.1, peerOverlayfs)
		// Half of fuse-overlayfs's time is asked for only where that is slower than the kernel.
		fuse, kernel := r.nearest(query{work.name, stateWarm, 10, peerFuseOverlayfs}), r.nearest(query{work.name, stateWarm, 10, peerOverlayfs})
		if fuse != nil && kernel != nil && fuse.Median() > 1.1*kernel.Median() {
			g.ratio(work.what, ours, 0.5, peerFuseOverlayfs)
		}
	}
}

func (r *Report) depthGoals(g *goalTable) {
	g.section = "Depth and memory"
	for _, work := range []struct{ name, state, what, peer string }{
		{"walk", stateWarm, "500 branches against one: warm walk", peerUnionfs},
		{"open-read", stateWarm, "500 branches against one: warm open and read", peerUnionfs},
		{"negative", stateWarm, "500 branches against one: missing names", peerUnionfs},
		{"walk", stateCold, "500 layers of an image against one: cold walk", peerUnionfsImage},
	} {
		g.between(work.what, query{work.name, work.state, 500, work.peer}, query{work.name, work.state, 1, work.peer}, 1.05, "≤ 1.05")
	}
	g.value("Server's memory at 14,114 nodes", query{"memory", "", 14114, peerUnionfs}, 25<<20, "≤ 25 MiB")
	some, many := r.nearest(query{"memory", "", 14114, peerUnionfs}), r.nearest(query{"memory", "", 1000000, peerUnionfs})
	value, text := nan, ""
	if some != nil && many != nil && many.Param > 10*some.Param {
		value = (many.Median() - some.Median()) / float64(many.Param-some.Param)
		text = fmt.Sprintf("%.0f B (%s at %d)", value, valueText(many.Median(), "B"), many.Param)
	}
	g.add("Memory for each node above that, at 1,000,000", "≤ 150 B", value, 150, text)
}

func (r *Report) imageGoals(g *goalTable) {
	g.section = "Images"
	g.ratio("Pull of an image of 10 layers", query{"pull", "", 10, peerUnionfs}, 0.4, peerPodman)
	g.between("Pull of a second one that shares nine of ten layers, against the first", query{"pull-second", "", 10, peerUnionfs},
		query{"pull", "", 10, peerUnionfs}, 0.2, "cost of one layer (≤ 0.2)")
	g.value("Remove an image", query{"rmi", "", 10, peerUnionfs}, 0.020, "≤ 20 ms")
	g.value("Mount by name, until the first ls", query{"mount-ls", "", 10, peerUnionfs}, 0.030, "≤ 30 ms")
	g.between("Commit of a container that changed 10 files", query{"commit", "", 10, peerUnionfs}, query{"commit", "", 10, peerPodmanFuse},
		0.05, "≤ 0.05 of podman commit with fuse-overlayfs")
}

func (r *Report) containerGoals(g *goalTable) {
	g.section = "Containers"
	g.value("run --rm IMAGE /bin/true", query{"run", stateWarm, 0, peerUnionfs}, 0.025, "≤ 25 ms")
	g.value("exec CONTAINER /bin/true", query{"exec", stateWarm, 0, peerUnionfs}, 0.010, "≤ 10 ms")
	g.between("16 starts at once, against one", query{"run-16", stateWarm, 0, peerUnionfs}, query{"run", stateWarm, 0, peerUnionfs}, 4, "≤ 4")
	g.value("Memory beside each container that sleeps", query{"asleep", "", 10, peerUnionfs}, 15<<20, "≤ 15 MiB")
	for _, work := range []struct{ name, what string }{
		{"volume-write", "Writing and syncing 64 MiB on a volume"}, {"volume-read", "Reading it"}, {"volume-create", "Making and removing 2,000 files on it"},
	} {
		g.between(work.what, query{work.name, stateWarm, 0, peerUnionfs}, query{work.name, stateWarm, 0, peerHost}, 1.03, "≤ 1.03 of the host's own file system")
	}
}

func (r *Report) takeoverGoals(g *goalTable) {
	g.section = "A mount that outlives its server"
	for _, entries := range []int64{14000, 1000000} {
		g.value(fmt.Sprintf("Longest wait for an answer when the server is killed, %d names known", entries),
			query{"kill", "", entries, peerUnionfsHeld}, 0.2, "≤ 200 ms")
	}
	for _, work := range heldWorks() {
		value, text := nan, ""
		if p, ok := r.paired(heldKey(work), peerUnionfsHeld, peerUnionfs); ok {
			value, text = p.median, p.text()
			key := heldKey(work)
			key.Bench = benchHolderCPU
			if p, ok := r.paired(key, peerUnionfsHeld, peerUnionfs); ok {
				text += "; processor time " + p.text()
			}
		}
		g.add("What the holder costs: "+work, "≤ 1.03 of the same in the foreground", value, 1.03, text)
	}
}

// reached returns how many goals were measured, and how many of those were reached.
func reached(rows []goalRow) (measured, good int) {
	for _, row := range rows {
		if row.Measured != "" {
			measured++
		}
		if row.Class == "good" {
			good++
		}
	}
	return measured, good
}
