package bench

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Progress tells the user what is being done: by a bar with the time left on a terminal, by a line for each part
// elsewhere. Its methods may be called on nil, and then do nothing.
type Progress struct {
	w     io.Writer
	all   *mpb.Progress // nil where there is no terminal
	bar   *mpb.Bar
	steps int64
	plans shares
	mu    sync.Mutex
	doing string
	last  string
	begun time.Time // when something was planned
	clock func() time.Time
}

// shares is progress through parts whose shares are known before their steps are.
type shares struct {
	total       float64 // of all weights; 0 if nothing is planned
	before      float64 // weights of the sections that are done
	weight      float64 // of this one
	steps, done int     // of this one
}

// at returns what is done, from 0 to 1.
func (s *shares) at() float64 {
	within := 0.0
	if s.steps > 0 {
		within = min(1, float64(s.done)/float64(s.steps))
	}
	return (s.before + s.weight*within) / s.total
}

// barUnits is the length of a planned bar.
const barUnits = 10000

// NewProgress returns one that writes to w.
func NewProgress(w io.Writer, terminal bool) *Progress {
	p := &Progress{w: w, clock: time.Now}
	if terminal {
		p.all = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
		p.bar = p.all.AddBar(0,
			mpb.PrependDecorators(decor.Percentage(decor.WCSyncSpace)),
			mpb.AppendDecorators(
				decor.AverageETA(decor.ET_STYLE_MMSS),
				decor.Name(" left  "),
				decor.Any(func(decor.Statistics) string {
					p.mu.Lock()
					defer p.mu.Unlock()
					return p.doing
				}),
			),
			mpb.BarRemoveOnComplete(),
		)
	}
	return p
}

// plan says that there will be sections with that total of weights.
func (p *Progress) plan(total float64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plans.total, p.begun = total, p.clock()
	if p.bar != nil {
		p.bar.SetTotal(barUnits, false)
	}
}

// section begins the next one.
func (p *Progress) section(weight float64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plans.before += p.plans.weight
	p.plans.weight, p.plans.steps, p.plans.done = weight, 0, 0
	p.showPlan()
}

// showPlan moves the bar. It is called with mu held.
func (p *Progress) showPlan() {
	if p.bar != nil {
		p.bar.SetCurrent(int64(p.plans.at() * barUnits))
	}
}

// left says how much is done of what was planned and how long the rest may take.
func (p *Progress) left() string {
	at := p.plans.at()
	if at == 0 {
		return ""
	}
	rest := time.Duration(float64(p.clock().Sub(p.begun)) * (1 - at) / at).Round(time.Second)
	return fmt.Sprintf("%3.0f %%, %d:%02d left  ", at*100, int(rest.Minutes()), int(rest.Seconds())%60)
}

// start says how many steps there are to be, besides those of benchmarks that were done before.
func (p *Progress) start(steps int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plans.total > 0 {
		p.plans.steps += steps
	} else if p.bar != nil {
		p.steps += int64(steps)
		p.bar.SetTotal(p.steps, false)
	}
}

// part says what is being done now: a line of its own where there is no terminal. detail is shown on terminals only.
func (p *Progress) part(text, detail string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doing = text + " " + detail
	if p.bar == nil && text != p.last {
		if p.plans.total > 0 {
			fmt.Fprint(p.w, p.left())
		}
		fmt.Fprintln(p.w, text)
	}
	p.last = text
}

// say prints a line that stays.
func (p *Progress) say(text string) {
	if p == nil {
		return
	}
	if p.all != nil {
		fmt.Fprintln(p.all, text) // above the bar
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.w, text)
}

// step says that n of the steps are done.
func (p *Progress) step(n int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plans.total > 0 {
		p.plans.done += n
		p.showPlan()
	} else if p.bar != nil {
		p.bar.IncrBy(n)
	}
}

// End removes the bar. Nothing may be reported after it.
func (p *Progress) End() {
	if p == nil || p.bar == nil {
		return
	}
	p.bar.Abort(true)
	p.all.Wait()
}
