"""Chats about the functions that people ask for first, in looser English than the comments."""

from . import classics
from .core import Item

# first name of a family in classics.txt (and words of its comment, to tell namesakes apart): what the function does
ASKS = {
    "sum_list": [
        "returns the sum of a list",
        "sums a list",
        "adds all numbers in a list",
        "computes the sum of a list of numbers",
    ],
    "max_list": ["returns the largest number in a list", "finds the maximum of a list", "returns the max of a list"],
    "min_list": ["returns the smallest number in a list", "finds the minimum of a list", "returns the min of a list"],
    "add": ["adds two numbers", "returns the sum of two numbers"],
    "max2": ["returns the larger of two numbers", "returns the maximum of two numbers"],
    "is_prime": ["checks if a number is prime", "checks whether a number is prime", "returns true if n is prime"],
    "factorial": ["computes the factorial", "returns the factorial of n", "computes the factorial of a number"],
    "fib": ["computes Fibonacci numbers", "returns the nth Fibonacci number", "computes the n-th Fibonacci number"],
    "gcd": ["computes the greatest common divisor", "returns the gcd of two numbers", "computes the gcd of a and b"],
    "is_palindrome": [
        "checks if a string is a palindrome",
        "checks whether a word is a palindrome",
        "detects palindromes",
    ],
    "reverse_string": ["reverses a string", "returns a reversed string", "reverses the string"],
    "reverse_list": ["reverses a list", "returns a reversed list", "reverses an array"],
    "sorted_copy": ["sorts a list", "sorts an array", "returns a sorted list"],
    "bubble_sort": ["sorts a list with bubble sort", "implements bubble sort"],
    "binary_search": ["does a binary search", "implements binary search", "searches a sorted list"],
    "split": ["splits a string", "splits a string at a separator"],
    "join": ["joins a list of strings", "joins strings with a separator"],
    "trim": ["trims a string", "removes spaces from both ends of a string", "trims whitespace"],
    "capitalize": ["capitalizes a string", "capitalizes a word"],
    "clamp": ["clamps a number", "clamps a value between a minimum and a maximum"],
    "unique": ["removes duplicates from a list", "returns the unique values of a list"],
    "contains": ["checks if a list contains a value", "checks whether a value is in a list"],
    "flatten": ["flattens a list of lists", "flattens a nested list"],
    "map": ["maps a function over a list", "applies a function to every element of a list"],
    "filter": ["filters a list", "filters a list with a predicate"],
    "merge": ["merges two tables", "combines two tables"],
    "copy": ["copies a table", "makes a shallow copy of a table"],
    "table_size": ["counts the entries of a table", "returns the size of a table"],
    "keys": ["returns the keys of a table", "lists the keys of a table"],
    "word_count": ["counts the words in a string", "counts how often each word occurs"],
    "median": ["computes the median", "returns the median of a list"],
    "fizzbuzz": ["does FizzBuzz", "implements FizzBuzz"],
    "is_leap_year": ["checks for a leap year", "checks if a year is a leap year"],
    "greet": ["greets a person", "says hello to a person"],
    "make_counter": ["makes a counter", "returns a counter function"],
    "to_fahrenheit": ["converts Celsius to Fahrenheit"],
    "power": ["raises a number to a power", "computes a power"],
    "is_even": ["checks if a number is even", "checks whether a number is even", "returns true if a number is even"],
    "count_vowels": ["counts vowels", "counts the vowels in a string"],
    "average": ["computes the average of a list", "returns the average of a list", "returns the mean of a list"],
}
# the functions above that come from a grammar, not from classics.txt
EXTRA = {
    "is_even": ("n", ["return n % 2 == 0"]),
    "count_vowels": (
        "s",
        [
            "local count = 0",
            'for c in s:gmatch(".") do',
            '  if c:match("[aeiouAEIOU]") then',
            "    count = count + 1",
            "  end",
            "end",
            "return count",
        ],
    ),
    "average": (
        "list",
        [
            "local total = 0",
            "for _, v in ipairs(list) do",
            "  total = total + v",
            "end",
            "if #list == 0 then",
            "  return 0",
            "end",
            "return total / #list",
        ],
    ),
}
FORMS = [
    "Write a Lua function that {}.",
    "Write a Lua function that {}.",
    "Write a function that {}.",
    "Write a Lua function that {}",
    "write a function that {}",
    "Please write a Lua function that {}.",
    "Can you write a function that {}?",
    "I need a function that {}.",
]


def ask(rng):
    """(request, function)"""
    name = rng.choice(sorted(ASKS))
    request = rng.choice(FORMS).format(rng.choice(ASKS[name]))
    if name in EXTRA:
        param, body = EXTRA[name]
        return request, Item("", name, [param], body, [], "popular")
    wanted = "x" if name == "contains" else None
    family = next(f for f in classics.FAMILIES if f["names"][0] == name and (not wanted or wanted in f["params"][0]))
    return request, classics.fill(family, family["params"][0], family["docs"][0], name)
