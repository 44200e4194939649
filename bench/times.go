package bench

import (
	"fmt"
	"time"
)

// PartTime says what one benchmark spent its time on, in seconds.
type PartTime struct {
	Part     string  `json:"part,omitempty"`
	Prepare  float64 `json:"prepare"`  // making trees and images, and comparing what everyone shows
	Rounds   float64 `json:"rounds"`   // from there on: mounting, filling caches, doing what is measured, unmounting
	Measured float64 `json:"measured"` // of that, what is in the report as a figure
}

// String is that as the log of a benchmark has it.
func (p PartTime) String() string {
	return fmt.Sprintf("%s took %.0f s to prepare and %.0f s of rounds, of which %.0f s were measured", p.Part, p.Prepare, p.Rounds, p.Measured)
}

// stopwatch tells preparing and measuring apart.
type stopwatch struct {
	since    time.Time
	rounds   bool
	prepared time.Duration
	measured time.Duration
}

// turn says what is done from now on: rounds, or preparation.
func (s *stopwatch) turn(rounds bool) {
	now := time.Now()
	if !s.since.IsZero() {
		if s.rounds {
			s.measured += now.Sub(s.since)
		} else {
			s.prepared += now.Sub(s.since)
		}
	}
	s.since, s.rounds = now, rounds
}

// preparing and inRounds say what a benchmark does from now on.
func (r *Report) preparing() { r.watch.turn(false) }
func (r *Report) inRounds()  { r.watch.turn(true) }

// partTime returns what the time went into until now.
func (r *Report) partTime() PartTime {
	r.watch.turn(r.watch.rounds)
	t := PartTime{Prepare: r.watch.prepared.Seconds(), Rounds: r.watch.measured.Seconds()}
	for _, m := range r.Measurements {
		for _, v := range m.Values {
			if m.Unit == "s" {
				t.Measured += v
			}
		}
	}
	return t
}
