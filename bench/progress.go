package bench

import (
	"fmt"
	"io"
	"sync"

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
	mu    sync.Mutex
	doing string
	last  string
}

// NewProgress returns one that writes to w.
func NewProgress(w io.Writer, terminal bool) *Progress {
	p := &Progress{w: w}
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

// start says how many steps there are to be, besides those of benchmarks that were done before.
func (p *Progress) start(steps int) {
	if p != nil && p.bar != nil {
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
		fmt.Fprintln(p.w, text)
	}
	p.last = text
}

// step says that n of the steps are done.
func (p *Progress) step(n int) {
	if p != nil && p.bar != nil {
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
