package bench

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Size of a plot. It is drawn small, so that its text can be read on a phone.
const (
	plotWidth    vg.Length = 360 // points
	plotHeight   vg.Length = 250
	legendLine   vg.Length = 13
	legendColumn           = 3
	textSize               = 9.5
)

// svg draws the figure. The colours in it are names of the theme; see theme.go.
func (f *figure) svg() ([]byte, error) {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	ink := themeColor(themeInk)
	p.Title.Text = f.title
	p.Title.TextStyle.Color = ink
	p.Title.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Weight: 3, Size: 12}
	p.Title.Padding = 4
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Label.TextStyle.Color, axis.Tick.Color, axis.Tick.Label.Color = ink, ink, ink, ink
		for _, style := range []*text.Style{&axis.Label.TextStyle, &axis.Tick.Label} {
			style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: textSize}
		}
		axis.LineStyle.Width, axis.Tick.LineStyle.Width = 0.5, 0.5
	}
	var err error
	height := plotHeight
	if f.isLine() {
		err = f.addLines(p)
	} else {
		height = 70 + 21*vg.Length(len(f.series))
		err = f.addBars(p)
	}
	if err != nil {
		return nil, fmt.Errorf("plotting %s: %w", f.id, err)
	}
	legend := vg.Length(0)
	if f.isLine() {
		legend = legendLine*vg.Length((len(f.series)+legendColumn-1)/legendColumn) + 4
	}
	canvas := vgsvg.New(plotWidth, height+legend)
	all := draw.New(canvas)
	p.Draw(draw.Crop(all, 2, -8, legend, -2))
	if f.isLine() {
		f.drawLegend(all)
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	return applyTheme(out.Bytes(), f.title+": "+f.subtitle), nil
}

// addLines draws a line for each peer, both axes logarithmic, with the quartiles as error bars.
func (f *figure) addLines(p *plot.Plot) error {
	low, high := math.Inf(1), 0.0
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = themeColor(themeGrid), themeColor(themeGrid)
	grid.Vertical.Width, grid.Horizontal.Width = 0.4, 0.4
	p.Add(grid)
	for _, s := range f.series {
		var points errorPoints
		for _, at := range s.points {
			low, high = min(low, at.lower), max(high, at.upper)
			points.XYs = append(points.XYs, plotter.XY{X: at.x, Y: at.median})
			points.YErrors = append(points.YErrors, struct{ Low, High float64 }{at.median - at.lower, at.upper - at.median})
		}
		line, marks, err := plotter.NewLinePoints(points.XYs)
		if err != nil {
			return err
		}
		line.LineStyle = s.lineStyle()
		marks.GlyphStyle = s.glyphStyle()
		bars, err := plotter.NewYErrorBars(points)
		if err != nil {
			return err
		}
		bars.LineStyle = draw.LineStyle{Color: themeColor(s.peer), Width: 0.6}
		bars.CapWidth = 3
		p.Add(line, bars, marks)
	}
	p.X.Label.Text = f.xTitle
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Min, p.X.Max = f.xs[0]*0.93, f.xs[len(f.xs)-1]*1.07
	p.Y.Min, p.Y.Max = low*0.85, high*1.18
	if p.Y.Max/p.Y.Min < 4 { // else noise fills the plot and there is no round number in it
		middle := math.Sqrt(p.Y.Max * p.Y.Min)
		p.Y.Min, p.Y.Max = middle/2, middle*2
	}
	var x, y plot.ConstantTicks
	previous := 0.0
	for _, v := range f.xs {
		tick := plot.Tick{Value: v}
		if v >= previous*1.5 { // labels closer than that would touch
			tick.Label, previous = f.xText(v), v
		}
		x = append(x, tick)
	}
	for _, v := range logTicks(p.Y.Min, p.Y.Max) {
		y = append(y, plot.Tick{Value: v, Label: tickText(v, f.unit)})
	}
	p.X.Tick.Marker, p.Y.Tick.Marker = x, y
	return nil
}

// errorPoints is what plotter.NewYErrorBars wants.
type errorPoints struct {
	plotter.XYs
	plotter.YErrors
}

// addBars draws a bar for each peer, from zero, the first on top.
func (f *figure) addBars(p *plot.Plot) error {
	reversed := slices.Clone(f.series)
	slices.Reverse(reversed)
	var names []string
	var labels plotter.XYLabels
	longest := 0.0
	for i, s := range reversed {
		at := s.points[0]
		bar, err := plotter.NewBarChart(plotter.Values{at.median}, 13)
		if err != nil {
			return err
		}
		bar.Horizontal, bar.XMin = true, float64(i)
		bar.Color, bar.LineStyle.Width = themeColor(s.peer), 0
		p.Add(bar)
		names = append(names, s.peer)
		longest = max(longest, at.median)
		labels.XYs = append(labels.XYs, plotter.XY{X: at.median, Y: float64(i)})
		labels.Labels = append(labels.Labels, " "+valueText(at.median, f.unit))
	}
	figures, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	for i := range figures.TextStyle {
		figures.TextStyle[i].Color = themeColor(themeInk)
		figures.TextStyle[i].Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: textSize}
		figures.TextStyle[i].YAlign = text.YCenter
	}
	p.Add(figures)
	p.NominalY(names...)
	p.X.Min, p.X.Max = 0, longest*1.25
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	var ticks plot.ConstantTicks
	for _, tick := range (plot.DefaultTicks{}).Ticks(0, longest) {
		if tick.Label != "" {
			ticks = append(ticks, plot.Tick{Value: tick.Value, Label: tickText(tick.Value, f.unit)})
		}
	}
	p.X.Tick.Marker = ticks
	return nil
}

// drawLegend draws the peers' names below the plot.
func (f *figure) drawLegend(c draw.Canvas) {
	style := text.Style{
		Color:   themeColor(themeInk),
		Font:    font.Font{Typeface: "Liberation", Variant: "Sans", Size: textSize},
		YAlign:  text.YCenter,
		Handler: plot.DefaultTextHandler,
	}
	rows := (len(f.series) + legendColumn - 1) / legendColumn
	width := (c.Max.X - c.Min.X) / legendColumn
	for i, s := range f.series {
		left := c.Min.X + 6 + width*vg.Length(i%legendColumn)
		y := c.Min.Y + 4 + legendLine*(vg.Length(rows-1-i/legendColumn)+0.5)
		c.StrokeLine2(s.lineStyle(), left, y, left+22, y)
		c.DrawGlyph(s.glyphStyle(), vg.Point{X: left + 11, Y: y})
		c.FillText(style, vg.Point{X: left + 26, Y: y}, s.peer)
	}
}

// lineStyle tells peers apart by more than colour.
func (s *series) lineStyle() draw.LineStyle {
	style := draw.LineStyle{Color: themeColor(s.peer), Width: 1.2}
	switch s.peer {
	case peerUnionfs, peerUnionfsImage:
		style.Width = 2.2
	case peerPlain:
		style.Dashes = []vg.Length{2, 2}
	case peerOverlayfsTuned, peerUnionfsFuse:
		style.Dashes = []vg.Length{5, 2}
	}
	return style
}

func (s *series) glyphStyle() draw.GlyphStyle {
	shapes := []draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.BoxGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{},
		draw.PyramidGlyph{}, draw.PlusGlyph{}, draw.SquareGlyph{}, draw.RingGlyph{},
	}
	return draw.GlyphStyle{Color: themeColor(s.peer), Radius: 2.4, Shape: shapes[max(0, themeIndex(s.peer))%len(shapes)]}
}

// tickText writes a round value.
func tickText(v float64, unit string) string {
	switch {
	case unit == "B":
		return humanSize(int64(v))
	case unit == unitRatio:
		return fmt.Sprintf("%.3g×", v)
	case v == 0:
		return "0"
	case v >= 0.9995:
		return fmt.Sprintf("%.3g s", v)
	case v >= 0.9995e-3:
		return fmt.Sprintf("%.3g ms", v*1e3)
	}
	return fmt.Sprintf("%.3g µs", v*1e6)
}
