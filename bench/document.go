package bench

import (
	_ "embed"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

//go:embed document.md
var documentTemplate string

type documentTable struct{ Title, Tree, Text string }

// WriteDocument writes benchmarks.md to a directory, and, in the directory bench in it, the report, its page and the plots
// that the document shows.
func (r *Report) WriteDocument(dir string) error {
	out := filepath.Join(dir, "bench")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(out, "*.svg"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	for _, f := range append(r.documentFigures(sectionRatio), r.documentFigures(sectionContainers)...) {
		svg, err := f.svg()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, f.id+".svg"), standalone(svg), 0o644); err != nil {
			return err
		}
	}
	if err := writeTo(filepath.Join(out, "report.json"), r.WriteJSON); err != nil {
		return err
	}
	if err := writeTo(filepath.Join(out, "index.html"), func(w io.Writer) error { return r.WritePage(w, nil) }); err != nil {
		return err
	}
	return writeTo(filepath.Join(dir, "benchmarks.md"), r.writeDocument)
}

// documentFigures are the plots that the document shows: of containers only those that are the most asked for.
func (r *Report) documentFigures(section string) []figure {
	return slices.DeleteFunc(r.figures(), func(f figure) bool {
		return f.section != section || section == sectionContainers && !slices.Contains([]string{"run-run-warm", "run-exec-warm", "images-pull", "images-commit"}, f.id)
	})
}

func (r *Report) writeDocument(w io.Writer) error {
	p := r.summary()
	var versions []string
	for _, peer := range []string{peerFuseOverlayfs, peerUnionfsFuse, peerMergerfs, peerPodman, peerDocker, peerContainerd, peerRunc, peerBubblewrap} {
		if version := r.versionOf(peer); version != "" {
			versions = append(versions, version)
		}
	}
	load, _ := strconv.ParseFloat(r.Machine.Load, 64)
	d := struct {
		page
		Version, Versions  string
		Busy               bool
		Ratios, Containers []pageFigure
		Tables             []documentTable
	}{page: p, Version: r.versionOf(peerUnionfs), Versions: strings.Join(versions, ", "), Busy: load > 1}
	for _, f := range r.documentFigures(sectionRatio) {
		d.Ratios = append(d.Ratios, pageFigure{ID: f.id, Title: f.title, Subtitle: f.subtitle})
	}
	for _, f := range r.documentFigures(sectionContainers) {
		d.Containers = append(d.Containers, pageFigure{ID: f.id, Title: f.title, Subtitle: f.subtitle})
	}
	for _, table := range p.Tables {
		d.Tables = append(d.Tables, documentTable{table.Title, table.Tree, table.markdown()})
	}
	t, err := template.New("document").Parse(documentTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, d)
}

func (r *Report) versionOf(peer string) string {
	for _, p := range r.Peers {
		if p.Name == peer {
			return p.Version
		}
	}
	return ""
}
