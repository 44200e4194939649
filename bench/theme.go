package bench

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"regexp"
	"strings"
)

// Plots must be readable on light and on dark ground, and who draws them can't know which it will be. So they are drawn
// with placeholder colours, which then are replaced by variables of CSS; the page, or a style in the SVG file itself, sets
// those for both.

// hue is a colour on light and on dark ground.
type hue struct{ name, light, dark string }

// variable is the colour's name in CSS, which has no plus signs in names.
func (h hue) variable() string { return strings.ReplaceAll(h.name, "+", "-") }

const (
	themeInk  = "ink"
	themeGrid = "grid"
)

// hues lists all colours: a placeholder is an index into it.
func hues() []hue {
	return []hue{
		{themeInk, "#1f2328", "#e6edf3"},
		{themeGrid, "#d0d7de", "#30363d"},
		{peerUnionfs, "#c2255c", "#ff6b9d"},
		{peerUnionfsImage, "#e8590c", "#ff922b"},
		{peerUnionfsHeld, "#862e9c", "#cc5de8"},
		{peerOverlayfs, "#1971c2", "#4dabf7"},
		{peerOverlayfsTuned, "#0c8599", "#3bc9db"},
		{peerFuseOverlayfs, "#2f9e44", "#69db7c"},
		{peerUnionfsFuse, "#9c36b5", "#da77f2"},
		{peerMergerfs, "#846358", "#d0a98f"},
		{peerPlain, "#6c757d", "#adb5bd"},
		{peerPodman, "#9c36b5", "#da77f2"},
		{peerPodmanFuse, "#2f9e44", "#69db7c"},
		{peerHost, "#6c757d", "#adb5bd"},
		{peerRunc, "#1971c2", "#4dabf7"},
		{peerBubblewrap, "#846358", "#d0a98f"},
		{peerSkopeoUmoci, "#0c8599", "#3bc9db"},
		{peerDocker, "#4263eb", "#748ffc"},
		{peerContainerd, "#f08c00", "#ffd43b"},
	}
}

func themeIndex(name string) int {
	for i, h := range hues() {
		if h.name == name {
			return i
		}
	}
	return 0
}

// themeColor is the placeholder of a colour.
func themeColor(name string) color.Color {
	return color.RGBA{R: 1, G: 2, B: uint8(themeIndex(name)), A: 255}
}

// applyTheme replaces the placeholders by variables, and makes the SVG scale to where it is shown. about is read out to
// those who can't see it.
func applyTheme(svg []byte, about string) []byte {
	// Not compiled when the program starts, since most of its uses draw nothing.
	var (
		placeholder = regexp.MustCompile(`#0102([0-9A-Fa-f]{2})`)
		prologue    = regexp.MustCompile(`(?s)^.*?<svg `)
		fixedSize   = regexp.MustCompile(`<svg width="[^"]*" height="[^"]*"`)
		fontFamily  = regexp.MustCompile(`font-family:[^;"]*`)
	)
	svg = prologue.ReplaceAll(svg, []byte("<svg "))
	svg = fixedSize.ReplaceAll(svg, []byte(`<svg role="img"`))
	svg = fontFamily.ReplaceAll(svg, []byte("font-family:system-ui,'Liberation Sans',Arial,sans-serif"))
	svg = placeholder.ReplaceAllFunc(svg, func(found []byte) []byte {
		var index int
		fmt.Sscanf(string(found[len("#0102"):]), "%x", &index)
		return fmt.Appendf(nil, "var(--%s)", hues()[min(index, len(hues())-1)].variable())
	})
	at := bytes.IndexByte(svg, '>') + 1
	return bytes.Join([][]byte{svg[:at], []byte("\n<title>" + html.EscapeString(about) + "</title>"), svg[at:]}, nil)
}

// themeVariables returns CSS that sets the colours on light and on dark ground.
func themeVariables() string {
	var light, dark strings.Builder
	for _, h := range hues() {
		fmt.Fprintf(&light, "--%s:%s;", h.variable(), h.light)
		fmt.Fprintf(&dark, "--%s:%s;", h.variable(), h.dark)
	}
	return fmt.Sprintf(":root{%s}\n@media (prefers-color-scheme: dark){:root{%s}}", &light, &dark)
}

// standalone makes a file of the SVG, which brings its colours along.
func standalone(svg []byte) []byte {
	at := bytes.IndexByte(svg, '>') + 1
	return bytes.Join([][]byte{
		[]byte(`<?xml version="1.0" encoding="UTF-8"?>` + "\n"),
		svg[:at], []byte("\n<style>" + themeVariables() + "</style>"), svg[at:],
	}, nil)
}
