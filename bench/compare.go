package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"
)

// Change is how a measurement differs from the same one of an earlier report.
type Change struct {
	Key
	Peer      string
	Unit      string
	Then, Now float64 // medians
	// P is the probability that values of the same distribution differ as these do (Mann and Whitney's test). Few runs
	// can't make it small: three against three reach 0.1.
	P      float64
	enough bool // there are runs enough to tell
	apart  bool // all values of one are beyond all of the other
}

// changeLimit is the least change of a median that is worth a word.
const changeLimit = 0.05

// Compare returns the changes of all that both reports have.
func Compare(then, now *Report) []Change {
	var changes []Change
	for _, m := range now.Measurements {
		before := then.find(m.Key, m.Peer)
		if before == nil || len(before.Values) == 0 || len(m.Values) == 0 {
			continue
		}
		test := benchmath.AssumeNothing.Compare(
			benchmath.NewSample(before.Values, &benchmath.DefaultThresholds),
			benchmath.NewSample(m.Values, &benchmath.DefaultThresholds),
		)
		thenLow, thenHigh := before.quantile(0), before.quantile(1)
		low, high := m.quantile(0), m.quantile(1)
		changes = append(changes, Change{
			Key: m.Key, Peer: m.Peer, Unit: m.Unit, Then: before.Median(), Now: m.Median(),
			P: test.P, enough: len(before.Values) >= 4 && len(m.Values) >= 4,
			apart: high < thenLow || low > thenHigh,
		})
	}
	return changes
}

// Relative returns the change of the median: 0.1 is 10 % more.
func (c *Change) Relative() float64 { return c.Now/c.Then - 1 }

// Beyond reports whether the change is beyond noise: at least 5 %, and significant (P < 0.05), or, with fewer than four
// runs, which can't be, with no run of one within the range of the other.
func (c *Change) Beyond() bool {
	if math.Abs(c.Relative()) < changeLimit {
		return false
	}
	if c.enough {
		return c.P < 0.05
	}
	return c.apart
}

func (c *Change) verdict() string {
	if c.enough {
		return fmt.Sprintf("yes (p = %.3f)", c.P)
	}
	return "likely, but there were fewer than 4 runs"
}

func (c *Change) row() changeRow {
	row := changeRow{
		Work: c.Work, State: c.State, At: c.paramText(), Peer: c.Peer,
		Then: valueText(c.Then, c.Unit), Now: valueText(c.Now, c.Unit),
		Change: fmt.Sprintf("%+.0f %%", c.Relative()*100), Class: "good", Verdict: c.verdict(),
	}
	if c.Relative() > 0 {
		row.Class = "bad"
	}
	return row
}

// WriteChanges writes a table of what changed beyond noise since the earlier report.
func (r *Report) WriteChanges(w io.Writer, earlier *Report) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	any := false
	for _, c := range Compare(earlier, r) {
		if !c.Beyond() {
			continue
		}
		if !any {
			fmt.Fprintln(out, "WORK\tSTATE\tAT\tWHO\tTHEN\tNOW\tCHANGE\tBEYOND NOISE?")
			any = true
		}
		row := c.row()
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Work, row.State, row.At, row.Peer, row.Then, row.Now, row.Change, row.Verdict)
	}
	if !any {
		fmt.Fprintf(out, "Nothing changed beyond noise since %s.\n", earlier.Started.Format("2 January 2006, 15:04 MST"))
	}
	if earlier.Machine.CPU != r.Machine.CPU || earlier.Machine.Kernel != r.Machine.Kernel {
		fmt.Fprintln(out, "The earlier report is of another machine or kernel.")
	}
	return out.Flush()
}
