# fish completion for unionfs; made by "unionfs completion fish".

function __unionfs_complete
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] "$typed" 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path "$typed"
        else
            echo $line
        end
    end
end
complete -c unionfs -f -a '(__unionfs_complete)'
