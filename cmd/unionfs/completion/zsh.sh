#compdef unionfs
# zsh completion for unionfs; made by "unionfs completion zsh".

_unionfs() {
  local value about files=
  local -a found
  while IFS=$'\t' read -r value about; do
    if [[ $value == :files ]]; then
      files=1
    else
      found+=("${value//:/\\:}:$about")
    fi
  done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
  (( ${#found} )) && _describe -t unionfs unionfs found
  [[ -n $files ]] && _files
  return 0
}

if [[ ${funcstack[1]} == _unionfs ]]; then
  _unionfs "$@"
else
  compdef _unionfs unionfs
fi
