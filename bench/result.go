package bench

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"gonum.org/v1/gonum/stat"
)

// reportVersion is raised when the meaning of a report's fields changes.
const reportVersion = 1

// Report is all that one invocation measured, in the form in which it is kept as JSON.
type Report struct {
	Version     int        `json:"version"`
	Started     time.Time  `json:"started"`
	Seconds     float64    `json:"seconds"` // how long it took
	Command     []string   `json:"command"`
	Interrupted bool       `json:"interrupted,omitempty"` // it was ended early: what is here was measured, and more was to come
	Machine     Machine    `json:"machine"`
	Peers       []PeerInfo `json:"peers"`
	Sizes       sizes      `json:"sizes"`
	Tree        string     `json:"tree,omitempty"` // what the branches hold, in words
	// Trees is that for each Key.Bench, where there are several.
	Trees        map[string]string `json:"trees,omitempty"`
	Notes        []string          `json:"notes,omitempty"` // what the reader must know besides
	Times        []PartTime        `json:"times,omitempty"` // of each benchmark, in their order
	Measurements []Measurement     `json:"measurements"`

	watch stopwatch
}

// PeerInfo says what was measured.
type PeerInfo struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Options string `json:"options,omitempty"`
	Missing string `json:"missing,omitempty"` // why it could not be measured at all
}

// Key says what a measurement is of.
type Key struct {
	Bench string `json:"bench"` // depth, files (as depth, with a large tree and every work), copyup, memory, programs and big (as files), run, images, volume, holder and holder-cpu (as files, but few of each) or takeover
	Work  string `json:"work"`
	State string `json:"state,omitempty"` // cold or warm
	Depth int    `json:"depth"`           // number of branches; 0 if it doesn't matter
	Param int64  `json:"param,omitempty"` // copyup: size of the file in bytes; memory and takeover: number of entries; asleep: number of containers
}

// Measurement is one kind of work, done by one peer, several times.
type Measurement struct {
	Key
	Peer   string    `json:"peer"`
	Unit   string    `json:"unit"`             // s or B
	Ops    int       `json:"ops,omitempty"`    // operations in one run
	Values []float64 `json:"values,omitempty"` // in the order of the runs
	Status string    `json:"status,omitempty"` // why there are no values, or fewer; "" if all went well
}

// Median returns the median of the values, NaN if there are none.
func (m *Measurement) Median() float64 { return m.quantile(0.5) }

// Quartiles returns the lower and the upper one.
func (m *Measurement) Quartiles() (lower, upper float64) { return m.quantile(0.25), m.quantile(0.75) }

func (m *Measurement) quantile(p float64) float64 {
	if len(m.Values) == 0 {
		return nan
	}
	sorted := slices.Sorted(slices.Values(m.Values))
	// gonum's LinInterp treats n values as n steps; between the middle two it gives no mean. For so few values that matters.
	if n := len(sorted); p == 0.5 && n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return stat.Quantile(p, stat.Empirical, sorted, nil)
}

// find returns the measurement of the peer, or nil.
func (r *Report) find(key Key, peer string) *Measurement {
	for i := range r.Measurements {
		if m := &r.Measurements[i]; m.Key == key && m.Peer == peer {
			return m
		}
	}
	return nil
}

// at returns the measurement of the peer, new if need be.
func (r *Report) at(key Key, peer, unit string) *Measurement {
	if m := r.find(key, peer); m != nil {
		return m
	}
	r.Measurements = append(r.Measurements, Measurement{Key: key, Peer: peer, Unit: unit})
	return &r.Measurements[len(r.Measurements)-1]
}

// ratio returns the peer's median over the other peer's, NaN if either is missing.
func (r *Report) ratio(key Key, peer, to string) float64 {
	a, b := r.find(key, peer), r.find(key, to)
	if a == nil || b == nil {
		return nan
	}
	return a.Median() / b.Median()
}

// keys returns what was measured, in the order in which it was first.
func (r *Report) keys() []Key {
	var keys []Key
	seen := map[Key]bool{}
	for _, m := range r.Measurements {
		if !seen[m.Key] {
			seen[m.Key] = true
			keys = append(keys, m.Key)
		}
	}
	return keys
}

// measuredPeers returns the names of the peers with any measurement, in the order of the report.
func (r *Report) measuredPeers() []string {
	var names []string
	for _, p := range r.Peers {
		if slices.ContainsFunc(r.Measurements, func(m Measurement) bool { return m.Peer == p.Name }) {
			names = append(names, p.Name)
		}
	}
	return names
}

// peersOf returns the names of the peers with a measurement of that benchmark.
func (r *Report) peersOf(bench string) []string {
	return slices.DeleteFunc(r.measuredPeers(), func(peer string) bool {
		return !slices.ContainsFunc(r.Measurements, func(m Measurement) bool { return m.Bench == bench && m.Peer == peer })
	})
}

// WriteJSON writes the report so that [ReadReport] reads it.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(r)
}

// ReadReport reads a report that was kept as JSON.
func ReadReport(name string) (*Report, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("reading an earlier report: %w", err)
	}
	r := &Report{}
	if err := json.Unmarshal(content, r); err != nil {
		return nil, fmt.Errorf("reading the earlier report %s: %w", name, err)
	}
	if r.Version != reportVersion {
		return nil, fmt.Errorf("reading the earlier report %s: it is of version %d, and this program knows version %d", name, r.Version, reportVersion)
	}
	return r, nil
}

// WriteCSV writes a line for every run.
func (r *Report) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	out.Write([]string{"bench", "work", "state", "depth", "param", "peer", "run", "value", "unit", "ops", "status"})
	for _, m := range r.Measurements {
		line := []string{m.Bench, m.Work, m.State, strconv.Itoa(m.Depth), strconv.FormatInt(m.Param, 10), m.Peer}
		for i, v := range m.Values {
			out.Write(append(line[:6:6], strconv.Itoa(i+1), strconv.FormatFloat(v, 'g', 6, 64), m.Unit, strconv.Itoa(m.Ops), ""))
		}
		if m.Status != "" {
			out.Write(append(line[:6:6], "", "", m.Unit, strconv.Itoa(m.Ops), m.Status))
		}
	}
	out.Flush()
	return out.Error()
}
