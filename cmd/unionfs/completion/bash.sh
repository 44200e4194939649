# bash completion for unionfs; made by "unionfs completion bash".

_unionfs() {
  # Not COMP_WORDS: bash splits words at colons, which names of images have.
  local line=${COMP_LINE:0:COMP_POINT} value about prefix
  local -a words
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=('')
  local typed=${words[-1]}
  COMPREPLY=()
  while IFS=$'\t' read -r value about; do
    if [[ $value == :files ]]; then
      compopt -o filenames
      while IFS= read -r value; do COMPREPLY+=("$value"); done < <(compgen -f -- "$typed")
    else
      COMPREPLY+=("$value")
    fi
  done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
  [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=] ]] && compopt -o nospace
  if [[ $typed == *:* && $COMP_WORDBREAKS == *:* ]]; then
    prefix=${typed%"${typed##*:}"}
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
  fi
}
complete -F _unionfs unionfs
