package bench

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// WriteFiles writes the report to a directory, which is made if it is missing: report.json and report.csv, index.html,
// and its plots as ID.svg. An earlier report may be nil.
func (r *Report) WriteFiles(dir string, earlier *Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := errors.Join(
		writeTo(filepath.Join(dir, "report.json"), r.WriteJSON),
		writeTo(filepath.Join(dir, "report.csv"), r.WriteCSV),
		writeTo(filepath.Join(dir, "index.html"), func(w io.Writer) error { return r.WritePage(w, earlier) }),
	)
	for _, f := range r.figures() {
		svg, failed := f.svg()
		err = errors.Join(err, failed, os.WriteFile(filepath.Join(dir, f.id+".svg"), standalone(svg), 0o644))
	}
	return err
}

// writeTo writes a file, unless what makes its content fails: then an older one stays.
func writeTo(name string, write func(io.Writer) error) error {
	var content bytes.Buffer
	if err := write(&content); err != nil {
		return err
	}
	return os.WriteFile(name, content.Bytes(), 0o644)
}
