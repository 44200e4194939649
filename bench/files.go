package bench

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// WriteFiles writes the report to a directory, which is made if it is missing: report.json and report.csv.
func (r *Report) WriteFiles(dir string, _ *Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		writeTo(filepath.Join(dir, "report.json"), r.WriteJSON),
		writeTo(filepath.Join(dir, "report.csv"), r.WriteCSV),
	)
}

func writeTo(name string, write func(io.Writer) error) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(file), file.Close())
}
