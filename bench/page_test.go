package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// testPage opens the page of a report in headless Chromium, wide and on a phone, light and dark.
func testPage(t *testing.T, dir string, r *Report) {
	files, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(r.figures()) || len(files) < len(works()) {
		t.Fatalf("there are %d SVG files for %d plots", len(files), len(r.figures()))
	}
	browser := startBrowser(t)
	for _, view := range []struct {
		name          string
		width, height int64
		scheme        string
		paper         color.RGBA
	}{
		{"wide, light", 1280, 900, "light", color.RGBA{0xff, 0xff, 0xff, 0xff}},
		{"phone, dark", 390, 844, "dark", color.RGBA{0x0d, 0x11, 0x17, 0xff}},
	} {
		t.Run(view.name, func(t *testing.T) {
			tab, complaints := browser.open(t)
			ask := func(expression string) int {
				t.Helper()
				n, err := chromedp.Run(tab, chromedp.Evaluate[int](expression))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			_, err := chromedp.Call(tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: view.scheme}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := chromedp.Do(tab, chromedp.EmulateViewport(view.width, view.height), chromedp.Navigate("file://"+filepath.Join(dir, "index.html"))); err != nil {
				t.Fatal(err)
			}
			plots := ask(`document.querySelectorAll("figure svg").length`)
			// A plot that shows has a size, and marks in one of the colours of unionfs.
			drawn := ask(`[...document.querySelectorAll("figure svg")].filter(svg =>
				svg.getBoundingClientRect().width > 200 && svg.getBoundingClientRect().height > 80 &&
				[...svg.querySelectorAll("path")].some(path => path.getAttribute("style")?.includes("var(--unionfs") &&
					getComputedStyle(path).stroke + getComputedStyle(path).fill != "nonenone" && path.getBoundingClientRect().width > 0)
			).length`)
			overflow := ask(`document.documentElement.scrollWidth - window.innerWidth`)
			screenshot, err := chromedp.Run(tab, chromedp.FullScreenshot(100))
			if err != nil {
				t.Fatal(err)
			}
			if said := complaints(); len(said) > 0 {
				t.Errorf("the console says %q", said)
			}
			if plots != len(files) || drawn != len(files) {
				t.Errorf("the page has %d plots, of which %d show; want %d", plots, drawn, len(files))
			}
			if overflow > 0 {
				t.Errorf("the page is %d pixels too wide", overflow)
			}
			// What matters most needs no scrolling aside.
			if hidden := ask(`[...document.querySelectorAll(".goals,.glance")].filter(table => table.scrollWidth > table.parentElement.clientWidth).length`); hidden > 0 {
				t.Errorf("%d tables of goals and ratios are wider than the page", hidden)
			}
			assertPicture(t, screenshot, view.paper)
			// For whoever wants to look.
			if keep := os.Getenv("UNIONFS_BENCH_SCREENSHOTS"); keep != "" {
				name := strings.ReplaceAll(view.name, ", ", "-") + ".png"
				if err := os.WriteFile(filepath.Join(keep, name), screenshot, 0o644); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// assertPicture checks that a screenshot shows something, on the right ground and in the colours of many peers.
func assertPicture(t *testing.T, screenshot []byte, paper color.RGBA) {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(screenshot))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[color.RGBA]int{}
	all := 0
	bounds := picture.Bounds()
	const stride = 4 // enough to see, and quick
	for y := bounds.Min.Y; y < bounds.Max.Y; y += stride {
		for x := bounds.Min.X; x < bounds.Max.X; x += stride {
			counts[color.RGBAModel.Convert(picture.At(x, y)).(color.RGBA)]++
			all++
		}
	}
	if share := float64(counts[paper]) / float64(all); share < 0.1 || share > 0.95 {
		t.Errorf("%.0f %% of the picture is its ground", share*100)
	}
	vivid := 0
	for c, n := range counts {
		if n > 20 && max(c.R, c.G, c.B)-min(c.R, c.G, c.B) > 60 {
			vivid++
		}
	}
	if vivid < 6 {
		t.Errorf("the picture has %d colours, too few for its peers", vivid)
	}
}

// browser is a headless Chromium.
type browser struct{ ctx context.Context }

func startBrowser(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"),
		chromedp.NoSandbox, // its sandbox doesn't run as root; the page is our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.WSURLReadTimeout(2*time.Minute), // it only ends a hang
		chromedp.UserDataDir(t.TempDir()),
	)
	allocated, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, endTab := chromedp.NewContext(allocated)
	t.Cleanup(endTab) // first: it waits for the browser's end
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting chromium: %v; install Debian's package chromium", err)
	}
	return &browser{ctx}
}

// open opens a tab. complaints returns what its console, or an exception, said since.
func (b *browser) open(t *testing.T) (tab context.Context, complaints func() []string) {
	t.Helper()
	limited, end := context.WithTimeout(b.ctx, 3*time.Minute)
	t.Cleanup(end)
	tab, endTab := chromedp.NewContext(limited)
	t.Cleanup(endTab)
	var mu sync.Mutex
	var said []string
	err := chromedp.Listen(tab, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch event.(type) {
		case *runtime.EventExceptionThrown, *runtime.EventConsoleAPICalled, *log.EventEntryAdded:
			text, err := json.Marshal(event)
			said = append(said, fmt.Sprintf("%s %v", text, err))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(tab, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	return tab, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(said)
	}
}
