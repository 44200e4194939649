package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"unionfs/layerstore"
)

// layersProgress tells the user how the layers of an image arrive: by a bar for each and one for all on a terminal, by a line
// for each layer that is done elsewhere.
type layersProgress struct {
	w      io.Writer
	height int           // rows of the terminal; 0 if there is none
	all    *mpb.Progress // nil until the first bar

	mu     sync.Mutex // guards all below; who draws the bars doesn't take it: changing a bar may wait for them to be drawn
	layers map[digest.Digest]*layerBar
	total  *mpb.Bar
	bytes  int64 // of all layers that are not there
	done   int64
}

// layerBar is the bar of one layer.
type layerBar struct {
	bar   *mpb.Bar
	words atomic.Pointer[string]
	state layerstore.LayerState
	total int64
	done  int64
}

// newLayersProgress returns one that writes to standard error; one that is silent if --quiet was given.
func newLayersProgress(c *cli.Context) *layersProgress {
	p := &layersProgress{w: c.App.ErrWriter, layers: make(map[digest.Digest]*layerBar)}
	if c.Bool("quiet") {
		p.w = io.Discard
		return p
	}
	if f, ok := p.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		if _, height, err := term.GetSize(int(f.Fd())); err == nil && height > 2 {
			p.height = height
		}
	}
	return p
}

// layerWords are what Docker says about a layer.
var layerWords = map[layerstore.LayerState]string{
	layerstore.LayerPresent:     "Already exists",
	layerstore.LayerPending:     "Pending",
	layerstore.LayerWaiting:     "Waiting",
	layerstore.LayerDownloading: "Downloading",
	layerstore.LayerVerified:    "Pull complete",
}

// tell is what [layerstore.PullOptions] wants as Progress.
func (p *layersProgress) tell(l layerstore.LayerProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.layers[l.Digest]
	if b == nil {
		b = &layerBar{total: l.Total}
		p.layers[l.Digest] = b
		if l.State != layerstore.LayerPresent {
			p.bytes += l.Total
		}
	}
	changed := b.state != l.State
	b.state = l.State
	words := layerWords[l.State]
	b.words.Store(&words)
	if p.height == 0 {
		if changed && l.State != layerstore.LayerPending && l.State != layerstore.LayerDownloading {
			fmt.Fprintf(p.w, "%s: %s\n", shortID(string(l.Digest)), layerWords[l.State])
		}
		return
	}
	if l.State == layerstore.LayerPresent && b.bar == nil && p.bytes == 0 {
		// Nothing to wait for, or not yet.
		fmt.Fprintf(p.w, "%s: %s\n", shortID(string(l.Digest)), layerWords[l.State])
		return
	}
	p.draw(b, l)
}

// draw moves the bars. Those of layers that wait for their turn come when that has come: an image may have more layers than a
// terminal has rows.
func (p *layersProgress) draw(b *layerBar, l layerstore.LayerProgress) {
	if p.all == nil {
		p.all = mpb.New(mpb.WithOutput(p.w), mpb.WithWidth(32))
		p.total = p.all.AddBar(0, mpb.BarPriority(1<<30),
			mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-12s  %-14s", "Total", ""))),
			mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f"), decor.Name("  "), decor.AverageSpeed(decor.SizeB1000(0), "% .1f")))
	}
	if b.bar == nil && l.State != layerstore.LayerPending {
		options := []mpb.BarOption{
			mpb.BarPriority(l.Index),
			mpb.PrependDecorators(decor.Name(shortID(string(l.Digest))+"  "), decor.Any(func(decor.Statistics) string {
				return fmt.Sprintf("%-14s", *b.words.Load())
			})),
			mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f")),
		}
		if l.Layers+1 >= p.height {
			options = append(options, mpb.BarRemoveOnComplete())
		}
		b.bar = p.all.AddBar(l.Total, options...)
	}
	p.done += l.Done - b.done
	b.done = l.Done
	p.total.SetTotal(p.bytes, false)
	p.total.SetCurrent(p.done)
	if b.bar == nil {
		return
	}
	b.bar.SetCurrent(l.Done)
	if l.State == layerstore.LayerVerified || l.State == layerstore.LayerPresent {
		b.bar.SetTotal(-1, true)
	}
}

// end leaves the bars as they are. Nothing may be told after it.
func (p *layersProgress) end() {
	p.mu.Lock()
	all := p.all
	for _, b := range p.layers {
		if b.bar != nil {
			b.bar.Abort(false)
		}
	}
	if p.total != nil {
		p.total.SetTotal(-1, true)
	}
	p.mu.Unlock()
	if all != nil {
		all.Wait()
	}
}
