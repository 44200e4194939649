package bench

import (
	"cmp"
	"slices"
	"time"
)

// pace keeps a benchmark within a time, its preparation included. Each part of it has its share, and what one leaves is for the next.
// What is measured in a round costs as much as in the round before, so what takes long is given up first; what takes a
// moment is done leastRounds times in any case.
type pace struct {
	start         time.Time
	share, budget time.Duration
	least         int // rounds that more allows however long they take; newPace says one
	part          int
	last, longest time.Duration
}

// leastRounds is how many rounds there are of all that takes no longer than quick, whatever the budget.
const (
	leastRounds = 3
	quick       = time.Second
)

// newPace returns one for that many parts of a benchmark that has started. A budget of 0 is none.
func newPace(started time.Time, budget time.Duration, parts int) *pace {
	return &pace{start: started, budget: budget, share: budget / time.Duration(max(1, parts)), least: 1}
}

// next begins the next part.
func (p *pace) next() {
	p.part++
	p.last, p.longest = time.Since(p.start), 0
}

// round says that a round, or what comes before the first, has ended.
func (p *pace) round() {
	now := time.Since(p.start)
	p.longest, p.last = max(p.longest, now-p.last), now
}

// left is how much there is of the time until the part should end.
func (p *pace) left() time.Duration {
	return time.Duration(p.part)*p.share - time.Since(p.start)
}

// more reports whether there is to be another round after those that were done, for benchmarks whose rounds are all of the same.
func (p *pace) more(done int) bool {
	return done < p.least || p.budget == 0 || done < leastRounds && p.longest <= 3*quick || p.longest <= p.left()
}

// choose returns what is done in another round after those that were done. costs is what each thing took the last time; with no
// round done, all are chosen, as they are where there is no budget.
func (p *pace) choose(done int, costs map[cell]time.Duration) map[cell]bool {
	chosen := map[cell]bool{}
	order := make([]cell, 0, len(costs))
	for c := range costs {
		order = append(order, c)
	}
	slices.SortFunc(order, func(a, b cell) int {
		return cmp.Or(cmp.Compare(costs[a], costs[b]), cmp.Compare(a.group, b.group), cmp.Compare(a.peer, b.peer))
	})
	left := p.left()
	for _, c := range order {
		if done == 0 || p.budget == 0 || costs[c] <= left || done < leastRounds && costs[c] <= quick {
			chosen[c] = true
			left -= costs[c]
		}
	}
	return chosen
}

// cell is what is measured of one peer on one mount, by their numbers.
type cell struct{ peer, group int }
