package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// CheckConfigChange returns an error unless a commit knows the instruction: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
// STOPSIGNAL, USER, VOLUME or WORKDIR, with arguments as in a Dockerfile (docs.docker.com, "docker container commit").
func CheckConfigChange(change string) error {
	return changeConfig(map[string]json.RawMessage{}, change)
}

// changeConfig does what an instruction of a Dockerfile says to the "config" of an image's configuration.
func changeConfig(config map[string]json.RawMessage, change string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return fmt.Errorf("%q is no change of the configuration, such as 'CMD [\"/bin/sh\"]' or 'ENV LANG=C'", clip(change))
	}
	err := applyChange(config, strings.ToUpper(word), rest)
	if err != nil {
		return fmt.Errorf("change %q: %w", clip(change), err)
	}
	return nil
}

func applyChange(config map[string]json.RawMessage, word, rest string) error {
	switch word {
	case "CMD":
		return setKey(config, "Cmd", commandLine(rest))
	case "ENTRYPOINT":
		return setKey(config, "Entrypoint", commandLine(rest))
	case "USER":
		return setKey(config, "User", rest)
	case "WORKDIR":
		return changeWorkingDir(config, rest)
	case "STOPSIGNAL":
		return setKey(config, "StopSignal", rest)
	case "ONBUILD":
		return changeKey(config, "OnBuild", func(all *[]string) { *all = append(*all, rest) })
	case "EXPOSE":
		return addToSet(config, "ExposedPorts", strings.Fields(rest), func(port string) string {
			if !strings.Contains(port, "/") {
				port += "/tcp"
			}
			return port
		})
	case "VOLUME":
		paths := strings.Fields(rest)
		if list, ok := jsonList(rest); ok {
			paths = list
		}
		return addToSet(config, "Volumes", paths, func(p string) string { return p })
	case "ENV", "LABEL":
		pairs, err := keyValues(rest)
		if err != nil {
			return err
		}
		if word == "ENV" {
			return changeKey(config, "Env", func(env *[]string) { setEnv(env, pairs) })
		}
		return changeKey(config, "Labels", func(labels *map[string]string) {
			if *labels == nil {
				*labels = make(map[string]string)
			}
			for _, p := range pairs {
				(*labels)[p[0]] = p[1]
			}
		})
	}
	return errors.New("only CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR are possible")
}

func setKey(config map[string]json.RawMessage, key string, v any) error {
	b, err := json.Marshal(v)
	config[key] = b
	return err
}

// changeKey changes a value that may not be there yet.
func changeKey[T any](config map[string]json.RawMessage, key string, change func(*T)) error {
	var v T
	if raw, ok := config[key]; ok {
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("the image's %s can't be read: %w", key, err)
		}
	}
	change(&v)
	return setKey(config, key, v)
}

func addToSet(config map[string]json.RawMessage, key string, names []string, norm func(string) string) error {
	return changeKey(config, key, func(set *map[string]struct{}) {
		if *set == nil {
			*set = make(map[string]struct{})
		}
		for _, n := range names {
			(*set)[norm(n)] = struct{}{}
		}
	})
}

// changeWorkingDir sets the directory; a relative one is below that of before.
func changeWorkingDir(config map[string]json.RawMessage, dir string) error {
	return changeKey(config, "WorkingDir", func(now *string) {
		if !strings.HasPrefix(dir, "/") {
			dir = strings.TrimSuffix(*now, "/") + "/" + dir
		}
		*now = dir
	})
}

// commandLine is a JSON list, or else words for a shell.
func commandLine(s string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}

func jsonList(s string) (list []string, ok bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	return list, json.Unmarshal([]byte(s), &list) == nil
}

func setEnv(env *[]string, pairs [][2]string) {
	for _, p := range pairs {
		entry := p[0] + "=" + p[1]
		at := slices.IndexFunc(*env, func(e string) bool { return strings.HasPrefix(e, p[0]+"=") })
		if at < 0 {
			*env = append(*env, entry)
		} else {
			(*env)[at] = entry
		}
	}
}

// keyValues reads KEY=VALUE pairs, in which quotes and backslashes protect spaces, or one KEY VALUE.
func keyValues(s string) ([][2]string, error) {
	words, err := quotedWords(s)
	if err != nil {
		return nil, err
	}
	if first, rest, ok := strings.Cut(s, " "); ok && !strings.Contains(first, "=") {
		return [][2]string{{first, strings.TrimSpace(rest)}}, nil
	}
	var pairs [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is not KEY=VALUE", clip(w))
		}
		pairs = append(pairs, [2]string{k, v})
	}
	return pairs, nil
}

// quotedWords splits at spaces that aren't in quotes or behind a backslash.
func quotedWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, c := range s {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == ' ' || c == '\t':
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quotation isn't closed")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
