package bench

import "time"

// pace keeps a benchmark within a time: each part of it has its share, and another round begins only if the longest until
// now would end in time. Every part gets one round.
type pace struct {
	start         time.Time
	share, budget time.Duration
	part          int
	last, longest time.Duration
}

// newPace returns one for that many parts. A budget of 0 is none.
func newPace(budget time.Duration, parts int) *pace {
	return &pace{start: time.Now(), budget: budget, share: budget / time.Duration(max(1, parts))}
}

// next begins the next part.
func (p *pace) next() {
	p.part++
	p.last, p.longest = time.Since(p.start), 0
}

// round says that a round has ended.
func (p *pace) round() {
	now := time.Since(p.start)
	p.longest, p.last = max(p.longest, now-p.last), now
}

// more reports whether there is time for another round.
func (p *pace) more() bool {
	return p.budget == 0 || time.Since(p.start)+p.longest <= time.Duration(p.part)*p.share
}
